"""Plans travel to the engine and back without loss."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, compositions, worlds
from vllm_promptcache.blocks.composition import Composition, Computed, Reused, Seen, UnitText
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.blocks.wire import (
    composition_from_wire,
    keys_from_wire,
    plan_to_wire,
    prompt_token_ids,
    texts_from_wire,
)
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.unit import Unit


def plan_of(world: World, composition: Composition, moved: int = 0) -> Plan:
    """The plan that says the same as a composition, of units that stand further on."""
    units: dict[str, Unit] = {}
    for name, text in world.units.items():
        context = tuple(units[seen.digest] for seen in text.context)
        units[name] = Unit(name, text.token_ids, text.position_ids + moved, text.kept, context, text.breaks)
    segments: list[CachedSegment | NewSegment] = []
    for item in composition.items:
        if isinstance(item, Reused):
            segments.append(CachedSegment(units[str(item.unit)], item.start, item.end))
        else:
            first = 50_000 + item.first_position
            segments.append(
                NewSegment(range(first, first + item.num_tokens), item.first_position, "prompt:1")
            )
    return Plan("schema", "digest", tuple(units.values()), tuple(segments))


def spelt_out(composition: Composition, names: Mapping[Any, str]) -> list[tuple[str, int]]:
    """Token by token: runs that follow on each other may be joined on the way."""
    return [
        (names[item.unit], token) if isinstance(item, Reused) else ("new", item.first_position + token)
        for item in composition.items
        for token in (range(item.start, item.end) if isinstance(item, Reused) else range(item.num_tokens))
    ]


def sent(wire: dict[str, Any]) -> Any:
    """What arrives in the engine's process."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(wire))


def whole_context(text: UnitText, texts: Mapping[str, UnitText]) -> list[tuple[str, int]]:
    """The context of a unit, also what its stem says."""
    before: list[tuple[str, int]] = []
    if text.has_stem:
        stem, moved = text.context[0]
        before = [(digest, offset + moved) for digest, offset in whole_context(texts[stem], texts)]
    return [*before, *text.context]


@given(st.data(), worlds())
def test_round_trip(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    plan = plan_of(world, composition)
    wire = sent(plan_to_wire(plan, with_texts=True))
    names = {unit.digest: unit.id for unit in plan.units}
    placed = {UnitKey(*unit.placement): unit.id for unit in plan.units}
    received = composition_from_wire(wire, keys_from_wire(wire["units"]))
    assert spelt_out(received, placed) == spelt_out(composition, {name: name for name in world.units})
    texts = texts_from_wire(wire["texts"])
    assert {names[digest] for digest in texts} == set(world.units)
    for digest, text in texts.items():
        wanted = world.units[names[digest]]
        assert np.array_equal(text.token_ids, wanted.token_ids)
        assert np.array_equal(text.positions + text.home, wanted.position_ids)
        assert np.array_equal(text.kept, wanted.kept)
        assert [(names[digest], offset) for digest, offset in whole_context(text, texts)] == list(
            wanted.context
        )
        assert text.breaks == wanted.breaks


@given(st.data(), worlds())
def test_the_prompt_travels_in_position_order(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    token_ids = prompt_token_ids(plan_of(world, composition))
    assert len(token_ids) == composition.num_tokens
    at = 0
    for item in composition.items:
        if isinstance(item, Computed):
            assert token_ids[at] == item.first_position + 50_000
            at += item.num_tokens
        else:
            assert token_ids[at] == world.units[str(item.unit)].token_ids[item.start]
            at += item.end - item.start


@given(st.data(), worlds(max_sites=4))
def test_texts_are_sent_only_when_asked_for(data: st.DataObject, world: World) -> None:
    plan = plan_of(world, data.draw(compositions(world)))
    assert "texts" not in plan_to_wire(plan, with_texts=False)


@given(worlds())
def test_digests_name_everything_states_depend_on_but_the_position(world: World) -> None:
    plan = plan_of(world, Composition((Computed(0, 1),)))
    further = plan_of(world, Composition((Computed(0, 1),)), moved=7)
    for unit, moved in zip(plan.units, further.units, strict=True):
        assert (moved.digest, moved.home) == (unit.digest, unit.home + 7)
        parts = {
            name: getattr(unit, name) for name in ("token_ids", "position_ids", "kept", "context", "breaks")
        }
        for what in ("token_ids", "position_ids", "kept"):
            changed = parts[what].copy()
            changed[-1] = not changed[-1] if what == "kept" else changed[-1] + 1
            if what != "position_ids" or unit.num_tokens > 1:
                assert Unit(unit.id, **(parts | {what: changed})).digest != unit.digest
        other = Unit("other", np.arange(1), np.arange(1), np.ones(1, bool), ())
        assert Unit(unit.id, **(parts | {"context": (*unit.context, other)})).digest != unit.digest
        assert Unit(unit.id, **(parts | {"breaks": (*unit.breaks, 99)})).digest != unit.digest
        if unit.context:
            assert Unit(unit.id, **(parts | {"context": moved.context})).digest != unit.digest


def test_units_travel_with_the_place_where_they_stand() -> None:
    context = Unit("c", np.arange(3), np.arange(5, 8), np.ones(3, bool), ())
    unit = Unit("u", np.arange(4), np.arange(10, 14), np.ones(4, bool), (context,))
    segments = (CachedSegment(unit, 0, 4), CachedSegment(unit, 1, 3, 20), NewSegment([7], 40, "prompt:1"))
    wire = sent(plan_to_wire(Plan("s", "d", (context, unit), segments), with_texts=True))
    keys = keys_from_wire(wire["units"])
    assert keys == [UnitKey(unit.digest, 10), UnitKey(unit.digest, 20)]
    first, second, _ = composition_from_wire(wire, keys).items
    assert (first, second) == (Reused(keys[0], 0, 4), Reused(keys[1], 1, 3))
    text = texts_from_wire(wire["texts"])[unit.digest]
    assert text.context == (Seen(context.digest, -5),) and text.home == 10
    assert text.context_keys(keys[1]) == (UnitKey(context.digest, 15),)
