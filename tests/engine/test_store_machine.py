"""The store with records and placements, against workers that do what they are told: whatever happens, a unit
that counts as resident has its states, where it stands, in blocks of its own.

``STORE_EXAMPLES`` and ``STORE_STEPS`` in the environment make it longer: ``STORE_EXAMPLES=2000
STORE_STEPS=100`` is nearly 200,000 steps.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.blocks.composition import UnitText
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.accounting import check_integrity
from vllm_promptcache.engine.loading import Loads
from vllm_promptcache.engine.messages import Load
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit
from vllm_promptcache.records.catalog import RecordCatalog

SIZE = 4
NUM_BLOCKS = 24
HOME = 100
LENGTHS = {"a": 3, "b": 4, "c": 9, "d": 16, "e": 17, "f": 8}
TEXTS = {
    name: UnitText(np.arange(n), np.arange(n), np.ones(n, bool), (), (), HOME) for name, n in LENGTHS.items()
}


class DiskIndex:
    """An index of nothing, that forgets all."""

    def records(self) -> list[Any]:
        return []

    def note(self, record: Any) -> None: ...

    def forget(self, header: Any) -> None: ...


class StoreMachine(RuleBasedStateMachine):
    """Any calls between steps. States are told by the text and the position that they are of."""

    def __init__(self) -> None:
        super().__init__()
        pool = BlockPool(NUM_BLOCKS + 1, enable_caching=True, hash_block_size=SIZE)
        self.store = ModuleStore(pool, SIZE, NUM_BLOCKS // 2, 10_000)
        index: Any = DiskIndex()
        self.catalog = RecordCatalog(40, 60, lambda rows: rows, "f", 1, index)
        self.recordings = Recordings(self.catalog)
        self.loads = Loads(self.store, self.recordings, lambda unit, requester: None)
        self.loads.call_workers = self._call_workers
        self.store.known.is_movable = lambda: True
        self.blocks: dict[int, tuple[str, int]] = {}
        self.memory: dict[str, str] = {}
        self.disk: dict[str, str] = {}
        self.wanted: dict[UnitKey, StoredUnit] = {}
        self.encoding: dict[UnitKey, StoredUnit] = {}
        self.recorded: dict[UnitKey, str] = {}
        self.lost_files: set[str] = set()

    keys = st.tuples(st.sampled_from(sorted(LENGTHS)), st.sampled_from([0, HOME, 200, 377])).map(
        lambda placement: UnitKey(*placement)
    )

    def _call_workers(self, what: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if what == "why_not_movable":
            return [None]
        found = []
        for header in args[0]:
            there = header.name in self.disk and header.name not in self.lost_files
            if there:
                self.memory[header.name] = self.disk[header.name]
            found.append(there)
        return [found]

    @rule(key=keys)
    def want(self, key: UnitKey) -> None:
        """A request needs a unit: it is loaded if it can be, or its encoding is queued."""
        if key in self.wanted:
            return
        unit = self.wanted[key] = self.store.known.hold(key, TEXTS)
        self._provide(unit)

    def _provide(self, unit: StoredUnit) -> None:
        self.loads.touch((unit.key,))
        if unit.has_states:
            return
        if self.loads.offers(unit):
            self.loads.begin(unit, None, [], lambda _: None)
        else:
            self.store.resident.begin(unit)
            self.store.known.hold(unit.key, {})
            self.recordings.plan(unit)
            self.encoding[unit.key] = unit

    @rule(key=keys)
    def want_no_more(self, key: UnitKey) -> None:
        """The request is gone; what was queued for it is withdrawn."""
        unit = self.wanted.pop(key, None)
        if unit is None:
            return
        self.loads.withdraw(unit)
        if key in self.encoding and not unit.blocks:
            self._end_encoding(unit)
        self.store.known.release(key)

    def _end_encoding(self, unit: StoredUnit) -> None:
        del self.encoding[unit.key]
        self.recordings.give_up(unit)
        self.recorded.pop(unit.key, None)
        self.store.resident.give_up(unit)
        self.store.known.release(unit.key)

    @rule(key=keys)
    def pin(self, key: UnitKey) -> None:
        self.loads.pin((key,))

    @rule(key=keys)
    def unpin(self, key: UnitKey) -> None:
        self.loads.unpin((key,))

    @rule(key=keys)
    def discard(self, key: UnitKey) -> None:
        self.loads.discard((key,))

    @rule(name=st.sampled_from(sorted(LENGTHS)))
    def lose_file(self, name: str) -> None:
        """Somebody removes a file."""
        self.lost_files |= {n for n, digest in self.disk.items() if digest == name}

    @rule(num_blocks=st.integers(1, NUM_BLOCKS))
    def shorten(self, num_blocks: int) -> None:
        """Plain traffic takes blocks for a moment."""
        self._make_room(num_blocks)

    def _make_room(self, num_blocks: int) -> bool:
        pool, drops = self.store.block_pool, self.store.resident.reclaim(set())
        while pool.get_num_free_blocks() < num_blocks:
            if next(drops, None) is None:
                return False
        return True

    @rule(num_encoded=st.integers(0, 2))
    def step(self, num_encoded: int) -> None:
        """A step: some encodings are admitted and end in it, and what can be loaded is."""
        written: list[tuple[StoredUnit, str | None]] = []
        for unit in list(self.encoding.values())[:num_encoded]:
            if self._make_room(unit.geometry.num_blocks):
                self.store.resident.allocate(unit)
                self.store.resident.finish(unit)
                recording = self.recordings.begin([unit], 0)
                written.append((unit, recording.records[0][0] if recording else None))
                del self.encoding[unit.key]
        self.loads.place_background(self._make_room)
        for unit, _ in written:
            self.recordings.complete(unit)
        loads, orders = self.loads.take_loads(), self.catalog.take_orders()
        for name in orders.dropped:
            self.memory.pop(name, None)
        for header in orders.removed:
            self.disk.pop(header.name, None)
        for load in loads:
            self._write(load)
        for unit, record in written:
            self._fill(unit.key, unit.blocks)
            if record is not None:
                self.memory[record] = unit.key.digest
        for header in orders.written:
            self.disk[header.name] = self.memory[header.name]
            self.lost_files.discard(header.name)
        for unit, _ in written:
            self.store.resident.end_use((unit.key,))
            self.store.known.release(unit.key)
        for unit in self.wanted.values():  # those that were given up
            self._provide(unit)

    def _write(self, load: Load) -> None:
        assert self.memory[load.record] == load.unit.digest
        assert (
            load.positions.tolist() == list(range(HOME, HOME + LENGTHS[load.unit.digest])) or load.shift == 0
        )
        assert load.positions[0] + load.shift == load.unit.position
        slots = load.slots[load.slots >= 0]
        for block in {int(slot) // SIZE for slot in slots}:
            self.blocks[block] = (load.unit.digest, load.unit.position)
        assert sorted(load.rows[load.rows >= 0].tolist()) == list(range(load.num_rows))

    def _fill(self, key: UnitKey, blocks: list[Any]) -> None:
        for block in blocks:
            self.blocks[block.block_id] = (key.digest, key.position)

    @invariant()
    def resident_units_have_their_states(self) -> None:
        check_integrity(self.store, [])
        for unit in self.store.known.by_key.values():
            if unit.residency is Residency.RESIDENT:
                for block in unit.blocks:
                    assert self.blocks[block.block_id] == (unit.key.digest, unit.key.position)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=int(os.environ.get("STORE_EXAMPLES", "40")),
    stateful_step_count=int(os.environ.get("STORE_STEPS", "40")),
    deadline=None,
)


@pytest.fixture(autouse=True)
def no_block_is_lost() -> None:
    """There is no engine here."""
