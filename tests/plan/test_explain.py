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
