"""The live composed requests, and which of them wait for which units."""

from __future__ import annotations

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit


class ComposedRequests:
    """Composed requests by ID. What each misses is kept up when a unit comes or goes, not looked up.

    ``unserved`` are those that may miss a unit which nobody provides; ``abandoned`` units that are being
    provided, and may be wanted by nobody any more.
    """

    def __init__(self, store: ModuleStore):
        self.store = store
        self.by_id: dict[str, ComposedRequest] = {}
        self.unserved: dict[str, None] = {}
        self.abandoned: dict[UnitKey, None] = {}
        store.resident.gained = self._gained
        store.resident.lost = self._lost

    def add(self, composed: ComposedRequest) -> None:
        """A request begins to wait for the units that it is composed of, each of which it holds."""
        request_id = composed.request.request_id
        self.by_id[request_id] = composed
        for key in composed.composition.unit_keys:
            unit = self.store.known[key]
            unit.requesters[request_id] = None
            if unit.residency is not Residency.RESIDENT:
                composed.missing[key] = None
        if composed.missing:
            self.unserved[request_id] = None

    def remove(self, request_id: str) -> ComposedRequest | None:
        """A request is over. Its units may be wanted by nobody now."""
        composed = self.by_id.pop(request_id, None)
        if composed is None:
            return None
        self.unserved.pop(request_id, None)
        for key in composed.composition.unit_keys:
            unit = self.store.known[key]
            del unit.requesters[request_id]
            self.reconsider(unit)
            self.store.known.release(key)
        return composed

    def reconsider(self, unit: StoredUnit) -> None:
        """Somebody wants a unit no more: if it is being provided, that may end."""
        if unit.residency is Residency.ENCODING and not unit.is_wanted:
            self.abandoned[unit.key] = None

    def take_abandoned(self) -> StoredUnit | None:
        """A unit that is being provided and that nobody wants, if there is one."""
        while self.abandoned:
            key, _ = self.abandoned.popitem()
            unit = self.store.known.by_key.get(key)
            if unit is not None and unit.residency is Residency.ENCODING and not unit.is_wanted:
                return unit
        return None

    def _gained(self, unit: StoredUnit) -> None:
        for request_id in unit.requesters:
            self.by_id[request_id].missing.pop(unit.key, None)
        self.store.backlog.end_warming(unit)

    def _lost(self, unit: StoredUnit) -> None:
        for request_id in unit.requesters:
            composed = self.by_id[request_id]
            if not composed.admitted:
                composed.missing[unit.key] = None
                self.unserved[request_id] = None
        if unit.residency is Residency.ABSENT:
            self.store.backlog.end_warming(unit)
