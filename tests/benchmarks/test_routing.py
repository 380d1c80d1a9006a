"""What is counted of where requests go."""

from benchmarks.routing.traces import at_home, least_busy, resident_share, zipf_requests


def test_requests_have_different_modules() -> None:
    requests = zipf_requests(20, 5, 100, 1.0)
    assert all(len(set(modules)) == 5 for modules in requests)


def test_two_engines_at_home_hold_what_one_cannot() -> None:
    requests = zipf_requests(20, 1, 2000, 0.0)
    balanced, _ = resident_share(requests, least_busy, 2, 10, 8)
    routed, busiest = resident_share(requests, at_home, 2, 10, 8)
    assert 0.45 < balanced < 0.55 and routed > 0.8 and busiest < 0.65


def test_with_room_for_all_each_is_missed_once_an_engine() -> None:
    requests = [["a"], ["b"]] * 10
    share, _ = resident_share(requests, at_home, 1, 2, 0)
    assert share == 18 / 20
