"""Plans travel to the engine and back without loss."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.strategies import World, compositions, worlds
from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.wire import (
    composition_from_wire,
    plan_to_wire,
    prompt_token_ids,
    texts_from_wire,
)
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.unit import Unit


def plan_of(world: World, composition: Composition) -> Plan:
    """The plan that says the same as a composition."""
    units: dict[str, Unit] = {}
    for name, text in world.units.items():
        context = tuple(units[str(c)] for c in text.context)
        units[name] = Unit(name, text.token_ids, text.position_ids, text.kept, context, text.breaks)
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


@given(st.data(), worlds())
def test_round_trip(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    plan = plan_of(world, composition)
    wire = sent(plan_to_wire(plan, with_texts=True))
    names = {unit.digest: unit.id for unit in plan.units}
    received = composition_from_wire(wire)
    assert spelt_out(received, names) == spelt_out(composition, {name: name for name in world.units})
    texts = texts_from_wire(wire["texts"])
    assert {names[digest] for digest in texts} == set(world.units)
    for digest, text in texts.items():
        wanted = world.units[names[digest]]
        assert np.array_equal(text.token_ids, wanted.token_ids)
        assert np.array_equal(text.position_ids, wanted.position_ids)
        assert np.array_equal(text.kept, wanted.kept)
        assert tuple(names[str(c)] for c in text.context) == wanted.context
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
def test_digests_name_everything_states_depend_on(world: World) -> None:
    composition = Composition((Computed(0, 1),))
    digests = {u.id: u.digest for u in plan_of(world, composition).units}
    for name, text in world.units.items():
        for what in ("token_ids", "position_ids", "kept"):
            changed = getattr(text, what).copy()
            changed[-1] = not changed[-1] if what == "kept" else changed[-1] + 1
            unit = {u.id: u for u in plan_of(world, composition).units}[name]
            arrays = {w: getattr(text, w) for w in ("token_ids", "position_ids", "kept")} | {what: changed}
            assert Unit(name, **arrays, context=unit.context, breaks=unit.breaks).digest != digests[name]
        other = Unit("other", np.arange(1), np.arange(1), np.ones(1, bool), ())
        moved = Unit(name, text.token_ids, text.position_ids, text.kept, (other,), text.breaks)
        assert moved.digest != digests[name]
        cut = Unit(name, text.token_ids, text.position_ids, text.kept, unit.context, (*text.breaks, 99))
        assert cut.digest != digests[name]
