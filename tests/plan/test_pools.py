"""Pools: where members stand, what they have seen, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.errors import IssueList, PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ModuleLayout
from vllm_promptcache.layout.pools import lay_out_member
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan, build_resolved
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.nodes import ModuleNode, TextNode
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.source import Place, Source
from vllm_promptcache.repairs.repaired import repaired

BYTES = TextEncoder(byte_tokenizer())
HERE = Place(Source("test", b""), 0, None, "")
SCHEMA = (
    '<schema name="s"{}>head<pool name="p" length="12"><module name="one">aaa</module>'
    '<module name="two">bb</module></pool>tail</schema>'
)


def layout_of(schema: str = SCHEMA.format("")) -> SchemaLayout:
    (parsed,) = parse_document(schema).schemas
    return build_layout(parsed, BYTES, 200)


def plan_of(layout: SchemaLayout, children: str, members: Any = None) -> Plan:
    prompt = parse_document(f'<prompt schema="s">{children}</prompt>').prompt
    assert prompt is not None
    if members is None:
        return build_plan(layout, prompt)
    return build_resolved(layout, resolve_prompt(layout, prompt, IssueList(), members))


def errors_of(children: str, schema: str = SCHEMA.format("")) -> list[str]:
    with pytest.raises(PMLError) as caught:
        plan_of(layout_of(schema), children)
    return [str(issue) for issue in caught.value.issues]


def placed(plan: Plan) -> list[tuple[str, int]]:
    """Reused units and where their segments begin."""
    return [(s.unit.id, s.first_position) for s in plan.segments if isinstance(s, CachedSegment)]


def test_members_stand_in_the_prompt_s_order() -> None:
    layout = layout_of()
    one = placed(plan_of(layout, "<p><one/><two/></p>?"))
    assert one == [("s", 0), ("s/p/one", 4), ("s/p/two", 7), ("s", 16)]
    other = placed(plan_of(layout, "<p><two/><one/></p>?"))
    assert other == [("s", 0), ("s/p/two", 4), ("s/p/one", 6), ("s", 16)]


def test_a_moved_unit_is_explained_with_its_context_moved() -> None:
    explained = plan_to_json(plan_of(layout_of(), "<p><two/><one/></p>?"))
    units = {unit["id"]: unit for unit in explained["units"]}
    assert units["s/p/one@6"]["context"] == ["s@2"]
    assert units["s/p/one@6"]["position_ids"] == [6, 7, 8]
    assert units["s@2"]["position_ids"] == [2, 3, 4, 5, 18, 19, 20, 21]
    assert [s["unit"] for s in explained["segments"] if "unit" in s] == ["s", "s/p/two", "s/p/one@6", "s"]


def test_the_same_text_in_the_same_context_is_one_unit() -> None:
    layout = layout_of(SCHEMA.format("").replace(">bb<", ">aaa<"))
    first, second = layout.pools["s/p"].members.values()
    assert first.unit is not None
    assert second.unit is not None
    assert first.unit.digest == second.unit.digest
    alone = layout_of(SCHEMA.format(' encode="isolated"'))
    assert all(member.unit.context == () for member in alone.pools["s/p"].members.values() if member.unit)


def test_in_sequence_members_see_what_is_around_them_only() -> None:
    schema = (
        '<schema name="s" encode="sequence">x<module name="m">before</module><module name="n">in'
        '<pool name="p" length="3"><module name="a">a</module></pool></module>'
        '<module name="z">z</module></schema>'
    )
    layout = layout_of(schema)
    (member,) = layout.pools["s/n/p"].members.values()
    assert member.unit is not None
    assert [unit.id for unit in member.unit.context] == ["s", "s/n"]
    last = layout.root.children["z"].unit
    assert last is not None
    assert [unit.id for unit in last.context] == ["s", "s/m", "s/n"]


def test_members_that_no_schema_declares() -> None:
    layout = layout_of()
    node = ModuleNode("three", True, (TextNode("cccc", HERE),), HERE)
    member = lay_out_member(layout.pools["s/p"], node, BYTES)
    members: dict[str, dict[str, ModuleLayout]] = {"s/p": {"three": member}}
    plan = plan_of(layout, "<p><two/><three/></p>?", members)
    assert placed(plan) == [("s", 0), ("s/p/two", 4), ("s/p/three", 6), ("s", 16)]
    assert [unit.id for unit in plan.units] == ["s", "s/p/two", "s/p/three"]
    brought = plan_of(layout, '<p><two/><module name="x y">cccc</module><use module="x y"/></p>?')
    units = {unit.id: unit.digest for unit in (*plan.units, *brought.units)}
    assert units["s/p/x y"] == units["s/p/three"]
    assert placed(brought)[2:4] == [("s/p/x y", 6), ("s/p/x y", 10)]


def test_a_pool_without_length_ends_where_its_members_end() -> None:
    pool = '<pool name="p"><module name="a">aa</module></pool>'
    schema = f'<schema name="s">head<module name="m">m</module>{pool}end</schema>'
    layout = layout_of(schema)
    assert layout.num_positions == 5
    plan = plan_of(layout, '<p><a/><module name="b">b</module></p>?')
    assert placed(plan) == [("s", 0), ("s/p/a", 5), ("s/p/b", 7)]
    assert [s.first_position for s in plan.segments if not isinstance(s, CachedSegment)] == [8, 11]
    assert [s.first_position for s in plan_of(layout, "?").segments] == [0, 5, 8]


@pytest.mark.parametrize("repair", ["link:2", "tail", "close", "link:1+tail"])
def test_repairs_know_where_members_stand(repair: str) -> None:
    plan = repaired(plan_of(layout_of(), "<p><one/><two/><one/></p>?"), Repair.parse(repair))
    by_position = {
        int(position): type(segment) is not CachedSegment
        for segment in plan.segments
        for position in np.arange(segment.num_tokens) + segment.first_position
    }
    new = {position for position, is_new in by_position.items() if is_new}
    expected = {
        # The first member has seen all that is before it.
        "link:2": {7, 8, 9, 10, 20},
        "tail": {16, 17, 18, 19, 20},
        "close": {12, 13, 14, 15, 16},
        "link:1+tail": {7, 9, 16, 17, 18, 19, 20},
    }
    assert new == expected[repair]


def test_what_is_refused() -> None:
    assert errors_of("<p><one/><two/><one/><one/><one/></p>") == [
        "pml:1:20: prompt/p: what stands in the pool takes 14 positions; 12 fit"
    ]
    assert errors_of("<p><tow/></p>") == ["pml:1:23: prompt/p/tow: unknown module 'tow'; did you mean 'two'?"]
    assert errors_of("<p><one>x</one></p>") == [
        "pml:1:28: prompt/p/one: nothing can stand in the element of 'one', a member of a pool"
    ]
    assert errors_of('<p><one a="b"/></p>') == ["pml:1:28: prompt/p/one/@a: unknown parameter 'a'"]
    assert errors_of('<p><module name="one">x</module></p>') == [
        "pml:1:31: prompt/p/module[one]/@name: the name 'one' is taken by another module in the pool"
    ]
    assert errors_of('<p><module name="x">x</module><module name="x">y</module></p>') == [
        "pml:1:58: prompt/p/module[x]/@name: the name 'x' is taken by another module in the pool"
    ]
    nested = '<schema name="s"><module name="m">x</module></schema>'
    assert errors_of('<m><module name="y">y</module></m>', nested) == [
        "pml:1:23: prompt/m/module[y]: a prompt may bring modules only in the element of a pool"
    ]
    assert errors_of("", SCHEMA.format("").replace("bb", "b" * 13)) == [
        "pml:1:80: schema[s]/pool[p]/module[two]: 'two' takes 13 positions; the pool 'p' has 12"
    ]
    behind = '<schema name="s"><pool name="p"/><module name="m">x</module></schema>'
    assert errors_of("", behind) == [
        "pml:1:34: schema[s]/module[m]: nothing but text can stand behind the pool 'p', which has no length"
    ]
    inside = '<schema name="s"><module name="m">x<pool name="p"/></module></schema>'
    assert errors_of("", inside) == [
        "pml:1:36: schema[s]/module[m]/pool[p]: a pool in a module needs a 'length'"
    ]
