"""The front end's calls into the scheduler: define, pin and watch units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from vllm_promptcache.blocks.heads import head_end_of_link
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.blocks.wire import keys_from_wire, texts_from_wire
from vllm_promptcache.engine.accounting import public_stats, stats, stats_of_tenants, tenant_stats
from vllm_promptcache.engine.expiry import Expiry
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit
from vllm_promptcache.engine.unit_catalog import UnitCatalog
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.naming import record_name


class Background(Protocol):
    """Who makes units resident that no request waits for."""

    def start_background(self) -> None:
        """Begin with what is in the backlog."""

    def reconsider(self, unit: StoredUnit) -> None:
        """Somebody wants a unit no more."""


class Records(Protocol):
    """What outlives units' states."""

    catalog: RecordCatalog

    def discard(self, keys: Iterable[UnitKey]) -> None:
        """Forget the records of units, wherever they stand."""

    def pin(self, keys: Iterable[UnitKey]) -> None:
        """Keep the records of units."""

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let the records of units go."""


class ModuleControl:
    """Registered schemas' units, as the front end sees them: by placement, without adapter or tenant.

    Calls take and return plain types, which pass between processes. They run between steps. Where
    requests repair with ``link_tokens`` by default, pinning and warming a unit includes its head for them.
    """

    def __init__(
        self,
        store: ModuleStore,
        catalog: UnitCatalog,
        residence: Background,
        check_integrity: Callable[[], None],
        records: Records,
        expiry: Expiry,
        link_tokens: int = 0,
    ):
        self.store = store
        self.catalog = catalog
        self._residence = residence
        self._check_integrity = check_integrity
        self._link_tokens = link_tokens
        self._records = records
        self._expiry = expiry

    def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One call of the front end: ``define``, ``forget``, ``pin``, ``unpin``, ``warm``,
        ``status``, ``expire``, ``stats`` or ``check``. Plain types in and out."""
        handlers = {
            "define": self._define,
            "forget": self._forget,
            "pin": self._pin,
            "unpin": self._unpin,
            "warm": self._warm,
            "status": self._status,
            "expire": self._expire,
            "stats": self._stats,
            "check": self._check,
        }
        return handlers[operation](payload)

    def _define(self, payload: dict[str, Any]) -> dict[str, Any]:
        texts = texts_from_wire(payload["texts"])
        self.catalog.define(texts, shared=payload.get("shared", False), ttl=payload.get("ttl"))
        for key in [key for digest in texts for key in self.store.known.placements_of(digest)]:
            self.store.known[key].retired = False
        return {}

    def _forget(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Withdraw a schema's units; their blocks are freed when the last request using them ends."""
        digests = list(dict.fromkeys(key.digest for key in keys_from_wire(payload["units"])))
        self.catalog.forget(digests, shared=payload.get("shared", False))
        gone = [digest for digest in digests if digest not in self.catalog]
        keys = [key for digest in gone for key in self.store.known.placements_of(digest)]
        self._records.discard([*(UnitKey(digest, 0) for digest in gone), *keys])
        for key in keys:
            if key in self.store.known:  # not gone already with a unit that it was context of
                unit = self.store.known[key]
                unit.retired = True
                self._want_no_more(unit)
                self.store.known.settle(unit)
        return {}

    def _pin(self, payload: dict[str, Any]) -> dict[str, Any]:
        keys = self._hold(payload["units"])
        pinned = self.store.pins.pin(keys, payload.get("ttl"))
        if pinned:
            self._records.pin(keys)
            self.store.backlog.add_pinned(keys)
            self._residence.start_background()
        self._release(keys)
        return {"pinned": pinned, **self._stats({})}

    def _unpin(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Let units go again; what is still to be encoded for the pin is not."""
        keys = [key for key in keys_from_wire(payload["units"]) if key in self.store.known]
        heads = [head for key in keys if (head := self._head_key(key)) and head in self.store.known]
        for key in [*heads, *keys]:
            self._want_no_more(self.store.known[key])
        return self._stats({})

    def _want_no_more(self, unit: StoredUnit) -> None:
        with self.store.known.held(unit):
            self.store.pins.unpin((unit.key,))
            self._records.unpin((unit.key,))
            self.store.backlog.end_warming(unit)
            self._residence.reconsider(unit)

    def _warm(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Encode units; ``refused`` says why that can never be done, and then nothing is."""
        keys = self._hold(payload["units"])
        refused = None
        try:
            for key in keys:
                self.store.pins.check_room_alone(key)
            self.store.backlog.add_warmed(keys)
            self._residence.start_background()
        except ValueError as error:
            refused = str(error)
        self._release(keys)
        return {"refused": refused, **self._stats({})}

    def _hold(self, placements: list[list[Any]]) -> list[UnitKey]:
        """Keys of units, each with a holder more, and of their heads for link tokens by default."""
        keys = list(dict.fromkeys(keys_from_wire(placements)))
        texts = self.catalog.texts_of((key.digest for key in keys), {})
        known = self.store.known
        for key in keys:
            known.hold(key, texts)
        return [*keys, *(known.hold_head(key, end).key for key in keys if (end := self._head_end(key)))]

    def _release(self, keys: Iterable[UnitKey]) -> None:
        for key in keys:
            self.store.known.release(key)

    def _head_end(self, key: UnitKey) -> int | None:
        """Where the head of a known unit ends that requests use by default; None where they use none."""
        unit = self.store.known[key]
        return head_end_of_link(unit.text, unit.geometry, self._link_tokens) if self._link_tokens else None

    def _head_key(self, key: UnitKey) -> UnitKey | None:
        end = self._head_end(key)
        return key.head(end) if end else None

    def _status(self, payload: dict[str, Any]) -> dict[str, Any]:
        units = []
        for key in keys_from_wire(payload["units"]):
            unit = self.store.known.by_key.get(key)
            residency = unit.residency if unit is not None else Residency.ABSENT
            units.append(
                {
                    "residency": residency.value,
                    "pinned": unit is not None and unit.pinned,
                    "blocks": len(unit.blocks) if unit is not None else 0,
                    "users": unit.users if unit is not None else 0,
                    "record": self._record_of(key),
                }
            )
        return {"units": units}

    def _record_of(self, key: UnitKey) -> str | None:
        """Where a unit's record is, from which it would be loaded."""
        name, catalog = record_name(key), self._records.catalog
        if catalog.is_in_memory(name):
            return "memory"
        return "disk" if catalog.is_on_disk(name) else None

    def _expire(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Let go of what time has come for; of each of ``units`` whether it is pinned still, as a number."""
        self._expiry.look()
        known = self.store.known.by_key
        keys = keys_from_wire(payload["units"])
        return {"pinned": [int((unit := known.get(key)) is not None and unit.pinned) for key in keys]}

    def _stats(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Counts: all of them, those that are nobody's (``public``), one ``tenant``'s, or all and each of the
        ``tenants``'."""
        records = self._records.catalog
        if (tenant := payload.get("tenant")) is not None:
            return tenant_stats(self.store, records, tenant)
        if payload.get("public"):
            return {**public_stats(self.store), **records.stats(), **records.stats_of("")}
        counts = {**stats(self.store), **records.stats(), "moves_modules": self.store.known.is_movable()}
        if payload.get("tenants"):
            counts["tenants"] = stats_of_tenants(self.store, records)
        return counts

    def _check(self, payload: dict[str, Any]) -> dict[str, Any]:
        self._check_integrity()
        return self._stats({})
