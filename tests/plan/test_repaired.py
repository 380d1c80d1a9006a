"""Repaired plans, against the definitions in docs/semantics.md and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.test_invariants import documents, plan_of
from tests.repairs import repair as repaired_by_definition
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.repair import NONE, Repair
from vllm_promptcache.contract.unit import Unit, token_after_kept
from vllm_promptcache.repairs.repaired import repaired, without_reuse

REPAIRS = [
    "none",
    "full",
    "auto",
    "link:3+auto",
    "tail",
    "link:1",
    "link:3",
    "link:40",
    "link:2+tail",
    "link:40+tail",
]


def without_sources(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in s.items() if k not in ("source", "repaired", "plain")} for s in segments]


@settings(deadline=None)
@given(documents(), st.sampled_from(REPAIRS))
def test_generated_plans_are_repaired_as_defined(pair: tuple[str, str], name: str) -> None:
    plan = plan_of(*pair)[3]
    found = repaired(plan, Repair.parse(name))
    expected = repaired_by_definition(plan_to_json(plan), name)
    explained = plan_to_json(found)
    assert without_sources(explained["segments"]) == without_sources(expected["segments"])
    for one, other in zip(plain_tokens(found), plain_tokens(plan), strict=True):
        assert np.array_equal(one, other)
    assert found.num_repaired_tokens == plan.num_cached_tokens - found.num_cached_tokens
    named = {s["unit"] for s in explained["segments"] if "unit" in s}
    assert named <= {unit.id for unit in found.units} <= {unit.id for unit in plan.units}
    for unit in found.units:
        assert set(unit.context) <= set(found.units)
        assert unit.id in named or any(unit in other.context for other in found.units)


@settings(deadline=None)
@given(documents(), st.sampled_from(["close", "link:3+close", "link:40+close"]))
def test_closing_up_moves_what_is_new_behind_all_that_is_reused(pair: tuple[str, str], name: str) -> None:
    plan = plan_of(*pair)[3]
    found = repaired(plan, Repair.parse(name))
    expected = repaired_by_definition(plan_to_json(plan), name)
    explained = plan_to_json(found)
    assert without_sources(explained["segments"]) == without_sources(expected["segments"])
    assert found.next_position == expected["next_position"] <= plan.next_position
    assert np.array_equal(plain_tokens(found)[0], plain_tokens(plan)[0])
    tail = repaired(plan, Repair.parse(name.replace("close", "tail")))
    assert [s.num_tokens for s in found.segments] == [s.num_tokens for s in tail.segments]
    assert found.units == tail.units


def unit(name: str, first: int, count: int, *context: Unit) -> Unit:
    return Unit(name, np.arange(count) + 100, np.arange(first, first + count), np.ones(count, bool), context)


def lines(plan: Plan) -> list[str]:
    return [
        f"{s.unit.id}[{s.start}:{s.end}]" if isinstance(s, CachedSegment) else f"{s.source} {s.num_tokens}"
        for s in plan.segments
    ]


ROOT = Unit("root", np.arange(6), np.array([0, 1, 2, 3, 50, 51]), np.ones(6, bool), ())
A, B, APART = unit("a", 4, 10, ROOT), unit("b", 20, 10, ROOT), unit("apart", 4, 10)
QUESTION = NewSegment([7], 52, "prompt:1")


def around(*units: Unit) -> Plan:
    """Units inside the schema's text, and a question."""
    inside = [CachedSegment(u, 0, u.num_tokens) for u in units]
    segments = (CachedSegment(ROOT, 0, 4), *inside, CachedSegment(ROOT, 4, 6), QUESTION)
    return Plan("s", "digest", (ROOT, *units), segments)


@pytest.mark.parametrize(
    ("plan", "name", "expected"),
    [
        # a has seen all that is before it, b has not.
        (around(A, B), "link:3", ["root[0:4]", "a[0:10]", "link:b 3", "b[3:10]", "root[4:6]", "prompt:1 1"]),
        (around(APART), "link:3", ["root[0:4]", "link:apart 3", "apart[3:10]", "root[4:6]", "prompt:1 1"]),
        # Of the schema's own text, link tokens reach as far as its second part.
        (around(A), "link:5", ["root[0:4]", "a[0:10]", "link:root 1", "root[5:6]", "prompt:1 1"]),
        (around(A), "tail", ["root[0:4]", "a[0:10]", "tail:root 2", "prompt:1 1"]),
        (around(A, B), "link:99+tail", ["root[0:4]", "a[0:10]", "link:b 10", "tail:root 2", "prompt:1 1"]),
        (around(A), "full", ["full:root 4", "full:a 10", "full:root 2", "prompt:1 1"]),
    ],
)
def test_repairs_by_hand(plan: Plan, name: str, expected: list[str]) -> None:
    assert lines(repaired(plan, Repair.parse(name))) == expected


def test_of_two_steps_each_makes_new_what_it_makes_of_the_prompt_as_it_is() -> None:
    """A tail in the middle is new, and what has seen it as it was encoded stays all the same."""
    after = unit("after", 60, 10, ROOT, A)
    question = NewSegment([7], 70, "prompt:1")
    inside = (CachedSegment(ROOT, 0, 4), CachedSegment(A, 0, 10), CachedSegment(ROOT, 4, 6))
    plan = Plan("s", "digest", (ROOT, A, after), (*inside, CachedSegment(after, 0, 10), question))
    found = repaired(plan, Repair.parse("link:3+tail"))
    assert lines(found) == ["root[0:4]", "a[0:10]", "tail:root 2", "after[0:10]", "prompt:1 1"]
    expected = repaired_by_definition(plan_to_json(plan), "link:3+tail")["segments"]
    assert without_sources(plan_to_json(found)["segments"]) == without_sources(expected)


def test_nothing_is_repaired_by_none() -> None:
    plan = around(A)
    assert repaired(plan, NONE) is plan
    assert plan.repaired_ranges == ()


def test_what_is_repaired_is_counted_among_what_is_new() -> None:
    plan = repaired(around(APART), Repair.parse("link:3+tail"))
    assert plan.repaired_ranges == ((0, 3), (3, 5))
    assert (plan.num_repaired_tokens, plan.num_new_tokens, plan.num_cached_tokens) == (5, 6, 11)
    explained = plan_to_json(plan)
    assert explained["num_repaired_tokens"] == 5
    assert [s.get("repaired") for s in explained["segments"]] == [None, True, None, True, None]


def test_a_plan_without_reuse_needs_no_unit() -> None:
    plan = without_reuse(around(A))
    assert (plan.units, plan.num_cached_tokens, plan.num_repaired_tokens) == ((), 0, 16)
    assert plan.next_position == around(A).next_position


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 35))
def test_the_token_behind_kept_ones(kept: list[bool], count: int) -> None:
    found = token_after_kept(np.array(kept, bool), count)
    indices = [index for index, is_kept in enumerate(kept) if is_kept]
    assert found == (0 if count == 0 else indices[count - 1] + 1 if count <= len(indices) else len(kept))
