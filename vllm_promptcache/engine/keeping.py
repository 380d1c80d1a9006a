"""What requests ask to be kept: pins and times that marks on parts of their prompts name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.module_store import ModuleStore

# A pin that nobody has named a time for ends so long after its last use: no call takes such pins back.
DEFAULT_PIN_S = 3600.0


class PinnedRecords(Protocol):
    """Records that stay while a unit is pinned."""

    def pin(self, keys: Iterable[UnitKey]) -> None:
        """Keep the records of units."""

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let the records of units go."""


class Keeping:
    """Carries out what requests ask for. Of a unit that stands at several places the last one is pinned."""

    def __init__(self, store: ModuleStore, records: PinnedRecords):
        self._store = store
        self._records = records
        self._pinned: dict[UnitKey, UnitKey] = {}

    def keep(self, composed: ComposedRequest, keeps: Iterable[Mapping[str, Any]]) -> None:
        """A request comes that is composed of units, which it holds; of some it says how long they stay.

        What cannot be pinned, as that would pass the limit or the tenant's share, is counted in the request.
        """
        keys = {
            (key.digest, key.position): key for key in composed.composition.unit_keys if key.part == WHOLE
        }
        for keep in keeps:
            key = keys.get((keep["digest"], keep["position"]))
            if key is None:
                continue
            unit, ttl = self._store.known[key], keep["ttl"]
            if not keep["pin"]:
                unit.ttl_s = ttl if unit.ttl_s is None or ttl is None else max(unit.ttl_s, ttl)
            elif self._pin(key, DEFAULT_PIN_S if ttl is None else ttl):
                composed.num_pinned += 1
            else:
                composed.num_pins_refused += 1

    def ended(self, keys: Iterable[UnitKey]) -> None:
        """Pins have ended, whoever asked for them."""
        keys = list(keys)
        for key in keys:
            if self._pinned.get(_anywhere(key)) == key:
                del self._pinned[_anywhere(key)]
        self._records.unpin(keys)

    def _pin(self, key: UnitKey, ttl: float) -> bool:
        pins, before = self._store.pins, self._pinned.get(_anywhere(key))
        if before is None and self._store.known[key].pinned:
            return True  # by whoever registered it
        if before is not None and before != key and before in self._store.known:
            with self._store.known.held(self._store.known[before]):
                pins.unpin((before,))
            self._records.unpin((before,))
            del self._pinned[_anywhere(key)]
        if not pins.pin((key,), ttl, by_request=True):
            return False
        self._pinned[_anywhere(key)] = key
        self._records.pin((key,))
        self._store.backlog.add_pinned((key,))
        return True


def _anywhere(key: UnitKey) -> UnitKey:
    return key._replace(position=0)
