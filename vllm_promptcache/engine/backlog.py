"""Units that are to be made resident when there is time: pinned and warmed ahead of any request."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.known_units import KnownUnits
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit


class Backlog:
    """Work that belongs to a pin, or to a call that warms units; it ends with its owner.

    A unit that is pinned stays known for that; one that is warmed has a holder until it is resident.
    """

    def __init__(self, known: KnownUnits):
        self._known = known
        self._keys: dict[UnitKey, None] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add_pinned(self, keys: Iterable[UnitKey]) -> None:
        """Have pinned units made resident."""
        self._add(keys)

    def add_warmed(self, keys: Iterable[UnitKey]) -> None:
        """Have units made resident that nothing else keeps known."""
        keys = [key for key in keys if self._known[key].residency is not Residency.RESIDENT]
        for key in keys:
            unit = self._known.hold(key, {})
            if unit.is_warmed:
                self._known.release(key)
            unit.is_warmed = True
        self._add(keys)

    def _add(self, keys: Iterable[UnitKey]) -> None:
        self._keys.update((key, None) for key in keys if not self._known[key].has_states)

    def end_warming(self, unit: StoredUnit) -> None:
        """The unit is resident, or its owner wants it no more."""
        if unit.is_warmed:
            unit.is_warmed = False
            self._known.release(unit.key)

    def next(self) -> StoredUnit | None:
        """Take the next unit that is still wanted and that nobody provides."""
        while self._keys:
            key = next(iter(self._keys))
            del self._keys[key]
            unit = self._known.by_key.get(key)
            if unit is not None and (unit.pinned or unit.is_warmed) and not unit.has_states:
                return unit
        return None
