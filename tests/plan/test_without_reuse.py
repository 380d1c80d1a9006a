"""The plan that reuses nothing."""

import numpy as np

from vllm_promptcache.plan.plain import plain_tokens
from vllm_promptcache.plan.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.plan.unit import Unit
from vllm_promptcache.plan.without_reuse import without_reuse


def test_neighbouring_segments_become_one_and_gaps_stay() -> None:
    positions = np.array([0, 1, 2, 10, 11])
    unit = Unit("u", np.arange(5) + 100, positions, np.ones(5, bool), ())
    segments = (
        CachedSegment(unit, 0, 2),
        NewSegment([1, 2], 2, "prompt:1"),
        CachedSegment(unit, 3, 5),
        NewSegment([3], 12, "messages"),
    )
    plan = Plan("s", "digest", (unit,), segments)
    plain = without_reuse(plan)
    assert [s.source for s in plain.segments if isinstance(s, NewSegment)] == ["u, prompt:1", "u, messages"]
    assert [s.num_tokens for s in plain.segments] == [4, 3]
    for one, other in zip(plain_tokens(plain), plain_tokens(plan), strict=True):
        assert np.array_equal(one, other)
    assert (plain.units, plain.num_cached_tokens, plain.next_position) == ((), 0, 13)
