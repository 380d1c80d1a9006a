"""Units loaded from records: the other way of making them resident, without a forward pass.

A loaded unit has no request of its own. It waits until a request that misses it is tried, and is given its
blocks then, with all others that the request waits for: the step that is being scheduled begins with writing
them. A record that is on disk only is fetched into the workers' memory just before; if that fails, the unit
is given up, and whoever wants it has it encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vllm_promptcache import compat
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.encoding import Encoding
from vllm_promptcache.engine.messages import Load
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.records.naming import record_name

CallWorkers = Callable[..., list[Any]]


class Loads:
    """All units that are being loaded. ``call_workers`` is given when the engine is there.

    ``hasten`` has a request wait for the encoding of a unit.
    """

    def __init__(
        self,
        store: ModuleStore,
        recordings: Recordings,
        hasten: Callable[[StoredUnit, ComposedRequest], None],
    ):
        self.call_workers: CallWorkers | None = None
        self.hasten = hasten
        self.catalog = recordings.catalog
        self._recordings = recordings
        self.num_loads = 0
        self._store = store
        self._waiting: dict[UnitKey, StoredUnit] = {}
        self._background: dict[UnitKey, None] = {}
        self._is_stuck = False
        self._placed: list[tuple[StoredUnit, str]] = []
        self._movable: bool | None = None

    @property
    def is_movable(self) -> bool:
        """Whether states of this model can stand elsewhere than they were computed."""
        if self._movable is None and self.call_workers is not None:
            self._movable = not any(self.call_workers("why_not_movable"))
        return bool(self._movable)

    @property
    def wants_step(self) -> bool:
        """Whether a step would load something, or begin to, though no request waits for it."""
        return bool(self._background or self._store.backlog) and not self._is_stuck

    @property
    def placed(self) -> list[StoredUnit]:
        """The units that the step which is being scheduled loads."""
        return [unit for unit, _ in self._placed]

    def touch(self, keys: Iterable[UnitKey]) -> None:
        """Units are asked for: their records are in use, wherever they are."""
        for key in keys:
            if key.part == WHOLE and self.catalog.header(name := record_name(key)) is not None:
                self.catalog.use(name)

    def discard(self, keys: Iterable[UnitKey]) -> None:
        """Forget the records of units, wherever they stand: their texts are withdrawn."""
        for name in {record_name(key) for key in keys}:
            self.catalog.discard(name)

    def pin(self, keys: Iterable[UnitKey]) -> None:
        """Keep the records of units."""
        for key in keys:
            if key.part == WHOLE:
                self.catalog.pin(record_name(key))

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let the records of units go."""
        for key in keys:
            self.catalog.unpin(record_name(key))

    # -- as a ``Provider`` -----------------------------------------------------------------------

    def offers(self, unit: StoredUnit) -> bool:
        """See ``Provider``: there is a record of it, or will be soon, and it can stand there."""
        if unit.key.part != WHOLE:
            return False
        name = record_name(unit.key)
        header, planned = self.catalog.header(name), self._recordings.planned(name)
        if header is None and planned is None:
            return False
        position = header.position if header is not None else planned.origin if planned is not None else 0
        return position == unit.key.position or self.is_movable

    def begin(
        self,
        unit: StoredUnit,
        requester: ComposedRequest | None,
        queued: list[Encoding],
        provide: Callable[[StoredUnit], None],
    ) -> None:
        """See ``Provider``: it waits for its turn."""
        self._store.resident.begin(unit)
        self._store.known.hold(unit.key, {})
        self._waiting[unit.key] = unit
        if requester is None:
            self._background[unit.key] = None
            self._is_stuck = False
        else:
            requester.loaded.add(unit.key)
            self.join(unit, requester)

    def join(self, unit: StoredUnit, requester: ComposedRequest) -> None:
        """See ``Provider``: an encoding that keeps the record is not in the background any more."""
        planned = self._recordings.planned(record_name(unit.key)) if unit.key in self._waiting else None
        if planned is not None:
            self.hasten(planned, requester)

    def withdraw(self, unit: StoredUnit) -> None:
        """See ``Provider``: it is not loaded."""
        if unit.key in self._waiting:
            self._give_up(unit)

    # -- steps -----------------------------------------------------------------------------------

    def place(self, keys: Iterable[UnitKey], make_room: Callable[[int], bool]) -> bool:
        """Give blocks to units that are waiting, if all of ``keys`` are: whether all are resident then.

        ``make_room`` drops idle units until so many blocks are free, and says whether they are. Where records
        do not all fit into memory at once, the rest follows in later steps.
        """
        units = [self._waiting.get(key) for key in keys]
        waiting = [unit for unit in units if unit is not None]
        if len(waiting) < len(units) or not make_room(sum(u.geometry.num_blocks for u in waiting)):
            return False
        elsewhere = [unit for unit in waiting if not self._place_from_memory(unit)]
        if elsewhere:
            self._fetch(elsewhere)
            elsewhere = [unit for unit in elsewhere if not self._place_from_memory(unit)]
        for unit in elsewhere:
            self._despair(unit)
        return not elsewhere

    def _place_from_memory(self, unit: StoredUnit) -> bool:
        name = record_name(unit.key)
        if not self.catalog.is_in_memory(name):
            return False
        del self._waiting[unit.key]
        self._background.pop(unit.key, None)
        self._store.resident.allocate(unit)
        self._store.resident.finish(unit)
        self.catalog.load(name)
        self._placed.append((unit, name))
        return True

    def _despair(self, unit: StoredUnit) -> None:
        """Give a unit up whose record is gone, or for which there is no room in memory and none will come."""
        name = record_name(unit.key)
        if self.catalog.is_moving(name) or self._recordings.planned(name) is not None:
            return
        if not self._placed:
            self.catalog.discard(name)
        if self.catalog.header(name) is None:
            self._give_up(unit)

    def _fetch(self, units: Sequence[StoredUnit]) -> None:
        """Bring the units' records from disk into memory, as far as there is room."""
        catalog = self.catalog
        names = dict.fromkeys(record_name(unit.key) for unit in units)
        headers = [catalog.header(name) for name in names if catalog.is_on_disk(name)]
        wanted = [header for header in headers if header is not None and catalog.fetching(header.name)]
        if wanted and self.call_workers is not None:
            answers = self.call_workers("fetch_records", args=(wanted,))
            for header, found in zip(wanted, zip(*answers, strict=True), strict=True):
                catalog.fetched(header.name, found=all(found))

    def place_background(self, make_room: Callable[[int], bool]) -> None:
        """Give blocks to units that no request waits for, while there are any."""
        units = [self._waiting[key] for key in self._background]
        if len(units) > 1 and make_room(sum(unit.geometry.num_blocks for unit in units)):
            # Together: workers read several files at once.
            self._fetch([unit for unit in units if not self.catalog.is_in_memory(record_name(unit.key))])
        for key in list(self._background):
            if not self.place((key,), make_room) and key in self._background:
                self._is_stuck = not self._placed
                return
        self._is_stuck = False

    def take_loads(self) -> tuple[Load, ...]:
        """What the step that is being scheduled begins with. The units may go after it."""
        placed, self._placed = self._placed, []
        loads = tuple(self._load(unit, name) for unit, name in placed)
        self.num_loads += len(loads)
        for unit, _ in placed:
            self._store.resident.end_use((unit.key,))
            self._store.known.release(unit.key)
        return loads

    def _load(self, unit: StoredUnit, name: str) -> Load:
        header, geometry, kept = self.catalog.header(name), unit.geometry, unit.text.kept
        assert header is not None
        slots = compat.physical_slots(geometry.slots[kept], unit.blocks, self._store.block_size)
        positions = unit.text.positions[kept] + header.position
        shift = unit.key.position - header.position
        rows = np.ascontiguousarray(geometry.rows[kept])
        return Load(unit.key, name, slots, rows, geometry.num_rows, positions, shift)

    def _give_up(self, unit: StoredUnit) -> None:
        del self._waiting[unit.key]
        self._background.pop(unit.key, None)
        self._store.resident.give_up(unit)
        self._store.known.release(unit.key)
