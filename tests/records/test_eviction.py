"""What goes first, and how close that comes to the best that could be done."""

from benchmarks.eviction.traces import belady, hit_rate, least_recently_used, zipf_trace
from vllm_promptcache.records.eviction import GreedyDual, encoding_cost


def test_equal_entries_go_in_the_order_of_their_last_use() -> None:
    order = GreedyDual()
    for name in "abc":
        order.add(name, 10, 1.0)
    assert [order.evict() for _ in range(4)] == ["a", "b", "c", None]


def test_what_was_used_often_stays_and_ages() -> None:
    order = GreedyDual()
    order.add("often", 10, 1.0)
    for _ in range(3):
        order.use("often")
    gone = []
    for number in range(20):
        order.add(f"{number}", 10, 1.0)
        if len(order) > 3:
            gone.append(order.evict())
    assert gone[0] == "0"
    assert "often" in gone


def test_held_entries_stay() -> None:
    order = GreedyDual()
    order.add("a", 10, 1.0)
    order.add("b", 10, 1.0)
    order.hold("a")
    order.hold("a")
    assert [order.evict(), order.evict()] == ["b", None]
    order.let_go("a")
    assert order.evict() is None
    order.let_go("a")
    assert order.evict() == "a"
    assert order.num_bytes == 0


def test_what_is_used_all_the_time_takes_no_memory() -> None:
    order = GreedyDual()
    for name in "abc":
        order.add(name, 1, 1.0)
    for _ in range(10_000):
        order.use("b")
    assert len(order._heap) < 100


def test_cost_grows_with_what_is_seen() -> None:
    assert encoding_cost(100, 0) < encoding_cost(200, 0) / 1.9
    assert encoding_cost(100, 4096) > 1.9 * encoding_cost(100, 0)


def test_on_a_zipf_trace_it_lies_between_lru_and_the_optimum() -> None:
    trace, sizes = zipf_trace(num_members=2000, num_requests=20_000, exponent=0.9, seed=0)
    room = sum(sizes.values()) // 10
    lru = least_recently_used(trace, sizes, room)
    ours = hit_rate(trace, sizes, room)
    best = belady(trace, sizes, room)
    assert lru + 0.02 < ours < best


def test_tenants_beyond_their_share_lose_first() -> None:
    order = GreedyDual(limit=25)
    order.add("old", 10, 9.0, tenant="quiet")
    for number in range(3):
        order.add(f"{number}", 10, 50.0, tenant="greedy")
    assert order.shares.amounts == {"quiet": 10, "greedy": 30}
    assert [order.evict(), order.evict()] == ["0", "old"]
    assert [order.evict_of("nobody"), order.evict_of("greedy")] == [None, "1"]
    assert (order.num_bytes, order.shares.amounts, order.numbers.amounts) == (
        10,
        {"greedy": 10},
        {"greedy": 1},
    )


def test_a_tenant_that_is_alone_ages_as_all_do() -> None:
    alone, free = GreedyDual(limit=25), GreedyDual()
    trace, sizes = zipf_trace(num_members=50, num_requests=2000, exponent=0.9, seed=1)
    room = sum(sizes.values()) // 5
    for name in trace:
        for order in (alone, free):
            if name in order:
                order.use(name)
            else:
                order.add(name, sizes[name], encoding_cost(sizes[name], 0))
        while free.num_bytes > room:
            assert alone.evict() == free.evict()
    assert alone._clock == free._clock > 0
