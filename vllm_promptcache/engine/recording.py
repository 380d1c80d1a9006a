"""Recordings: encodings whose rows are kept as records as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.engine.messages import Recording
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.eviction import encoding_cost
from vllm_promptcache.records.naming import record_name
from vllm_promptcache.records.shares import tenant_name


class Recordings:
    """Which units' encodings keep a record. What is encoded of a unit a second time, its heads, keep none."""

    def __init__(self, catalog: RecordCatalog):
        self.catalog = catalog
        self._names: dict[UnitKey, str] = {}
        # Who is about to keep which record, from when it is queued.
        self._planned: dict[str, StoredUnit] = {}

    def plan(self, unit: StoredUnit) -> None:
        """A unit's encoding is queued: others may wait for its record instead of encoding it as well."""
        if unit.key.part == WHOLE and self.catalog.is_open and unit.text.kept.any():
            name = record_name(unit.key)
            if self.catalog.header(name) is None:
                self._planned.setdefault(name, unit)

    def planned(self, name: str) -> StoredUnit | None:
        """Whose encoding is queued or running that keeps a record."""
        return self._planned.get(name)

    def _end_plan(self, unit: StoredUnit) -> None:
        name = record_name(unit.key)
        if self._planned.get(name) is unit:
            del self._planned[name]

    def begin(self, units: Sequence[StoredUnit], num_context_tokens: int) -> Recording | None:
        """Units' encoding, by one request that reuses so many tokens, takes its slots, at first or again:
        what is kept of it."""
        records: list[tuple[str, int]] = []
        rows: list[NDArray[np.int64]] = []
        num_rows = 0
        for unit in units:
            kept = unit.text.kept
            name = self._begin(unit, num_context_tokens)
            num_context_tokens += len(kept)
            if name is None:
                rows.append(np.full(len(kept), -1))
                continue
            number = int(kept.sum())
            rows.append(np.where(kept, np.cumsum(kept) - 1 + num_rows, -1))
            records.append((name, number))
            num_rows += number
        return Recording(tuple(records), np.concatenate(rows)) if records else None

    def _begin(self, unit: StoredUnit, num_context_tokens: int) -> str | None:
        """The name of a unit's record, if one is kept."""
        kept = unit.text.kept
        if unit.key.part != WHOLE or not self.catalog.is_open or not kept.any():
            return None
        if unit.key not in self._names:
            name = record_name(unit.key)
            cost = encoding_cost(len(kept), num_context_tokens)
            num_rows = int(kept.sum())
            if not self.catalog.begin(name, num_rows, unit.origin, cost, **_whose(unit.key)):
                self._end_plan(unit)
                return None
            self._names[unit.key] = name
        return self._names[unit.key]

    def complete(self, unit: StoredUnit) -> None:
        """The step that is being scheduled writes the last of a unit's states."""
        self._end_plan(unit)
        name = self._names.pop(unit.key, None)
        if name is not None:
            self.catalog.complete(name)

    def give_up(self, unit: StoredUnit) -> None:
        """A unit's encoding ended before that."""
        self._end_plan(unit)
        name = self._names.pop(unit.key, None)
        if name is not None:
            self.catalog.give_up(name)


def _whose(key: UnitKey) -> dict[str, Any]:
    """Whose a record is, and whether it must not outlive the server: an adapter's weights are not in its
    files' names."""
    return {"is_private": key.adapter is not None, "tenant": tenant_name(key.tenant)}
