"""What a plan says of itself as JSON, beyond what the oracle reads."""

import numpy as np

from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.unit import Unit

UNIT = Unit("s/m", np.arange(5), np.arange(10, 15), np.ones(5, bool), ())


def plain(*segments: CachedSegment | NewSegment) -> list[bool]:
    units = tuple({s.unit: None for s in segments if isinstance(s, CachedSegment)})
    explained = plan_to_json(Plan("s", "d", units, segments))
    return [bool(segment.get("plain")) for segment in explained["segments"]]


def test_new_text_before_all_else_is_looked_up_as_plain_requests_are() -> None:
    tools, more, last = NewSegment([1] * 6, 0, "a"), NewSegment([2] * 4, 6, "b"), NewSegment([3], 15, "c")
    assert plain(tools, more, CachedSegment(UNIT, 0, 5), last) == [True, True, False, False]
    assert plain(CachedSegment(UNIT, 0, 5), last) == [False, False]
    assert plain(tools, NewSegment([2], 7, "gap")) == [True, False]
    assert plain(tools, more) == [True, True]


def test_a_unit_has_the_name_that_events_have_for_it() -> None:
    """Its digest, and the position of its first token; moved, the same digest elsewhere."""
    segments = (CachedSegment(UNIT, 0, 5), CachedSegment(UNIT, 0, 5, 20), NewSegment([3], 30, "c"))
    units = plan_to_json(Plan("s", "d", (UNIT,), segments))["units"]
    assert [(unit["digest"], unit["position_ids"][0]) for unit in units] == [
        (UNIT.digest, 10),
        (UNIT.digest, 20),
    ]


def test_each_unit_has_a_name_of_its_own() -> None:
    """Though a module may be called as another is where that stands, or as one of another text is."""
    root = Unit("s", np.arange(3), np.arange(3), np.ones(3, bool), ())
    moved = Unit("s/a", np.arange(5), np.arange(3, 8), np.ones(5, bool), (root,))
    like_it = Unit("s/a@20", np.arange(4), np.arange(3, 7), np.ones(4, bool), (root,))
    same_id = Unit("s/a", np.arange(7, 9), np.arange(3, 5), np.ones(2, bool), (root,))
    segments = (
        CachedSegment(root, 0, 3),
        CachedSegment(like_it, 0, 4),
        CachedSegment(same_id, 0, 2, 10),
        CachedSegment(same_id, 0, 2, 17),
        CachedSegment(moved, 0, 5, 20),
        NewSegment([3], 30, "c"),
    )
    explained = plan_to_json(Plan("s", "d", (root, moved, like_it, same_id), segments))
    by_name = {unit["id"]: unit for unit in explained["units"]}
    assert len(by_name) == len(explained["units"])
    reused = [segment["unit"] for segment in explained["segments"] if "unit" in segment]
    assert reused == ["s", "s/a@20", "s/a@10", "s/a@17", "s/a@20#2"]
    assert [by_name[name]["token_ids"] for name in reused] == [
        segment.unit.token_ids.tolist() for segment in segments if isinstance(segment, CachedSegment)
    ]
    for name in reused[1:]:
        (context,) = by_name[name]["context"]
        shift = by_name[name]["position_ids"][0] - 3
        assert by_name[context]["position_ids"] == [shift, shift + 1, shift + 2]
