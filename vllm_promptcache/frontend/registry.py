"""The registry: schemas by name and version, and what the engine is told of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from vllm_promptcache.contract.unit import Placement
from vllm_promptcache.errors import unknown
from vllm_promptcache.frontend.catalog import Catalog
from vllm_promptcache.frontend.connection import EngineConnection
from vllm_promptcache.frontend.documents import LayoutBuilder
from vllm_promptcache.frontend.entry import API, SchemaEntry
from vllm_promptcache.frontend.errors import CONFLICT, INSUFFICIENT_STORAGE, NOT_FOUND, RefusedError
from vllm_promptcache.frontend.telling import TOLD_AT_ONCE, UnitTelling, slices
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.stored import schema_from_plain, to_plain

_SCHEMA = "schema"

logger = logging.getLogger("vllm.promptcache")

# Units that are encoded at once: others have their turn between calls.
ENCODED_AT_ONCE = 64

# What all registered schemas may take of this process's memory: far more than models have positions for.
MAX_BYTES = 1024**3


@dataclass(frozen=True)
class Registered:
    """What a registration came to: the schemas of the document in order, and whether any is new."""

    entries: tuple[SchemaEntry, ...]
    is_new: bool


class SchemaRegistry:
    """Registered schemas. All changes go through here, one at a time.

    A registration is all or nothing: the engine is told first, and told back if something fails.
    Requests in flight keep the version that they were composed from. Where a server has several front ends
    the ``catalog`` is the truth, and each follows it.
    """

    def __init__(
        self,
        connection: EngineConnection,
        builder: LayoutBuilder,
        max_schemas: int,
        catalog: Catalog | None,
        *,
        shares_operators: bool = True,
    ) -> None:
        self.connection = connection
        self.builder = builder
        self.max_schemas = max_schemas
        self.max_bytes = MAX_BYTES
        self.entries: dict[str, SchemaEntry] = {}
        self.layouts: dict[str, SchemaLayout] = {}
        self._catalog = catalog
        self.telling = UnitTelling(connection, shares_operators=shares_operators)
        self._change = asyncio.Lock()

    def __getitem__(self, name: str) -> SchemaEntry:
        """The schema of a name. Raises RefusedError (404) where there is none."""
        entry = self.entries.get(name)
        if entry is None:
            raise RefusedError(unknown("schema", name, self.entries), NOT_FOUND)
        return entry

    async def register(
        self,
        text: str | bytes | Mapping[str, Any],
        *,
        where: str = "pml",
        source: str = API,
        pin: bool = False,
        ttl: float | None = None,
    ) -> Registered:
        """Register all schemas of a document, or one in the JSON form, or none; with ``pin``, pin and encode
        them.

        When nobody has used a module for ``ttl`` seconds its pin ends, or, without one, its states go.

        A schema that is registered already with the same content stays as it is, but for ``pin``.

        Raises:
            PMLError: the document is wrong.
            RefusedError: there are too many schemas (409), or pinning would pass the limit (507).
        """
        layouts = await self.connection.run(lambda: self.builder.schemas_of(text, where))
        return await self.register_layouts(layouts, source=source, pin=pin, ttl=ttl)

    async def register_layouts(
        self, layouts: Iterable[SchemaLayout], *, source: str, pin: bool = False, ttl: float | None = None
    ) -> Registered:
        """As `register`, for schemas that are laid out."""
        async with self.changing():
            entries = [self._same_or_new(layout, source) for layout in layouts]
            new = [entry for entry in entries if not entry.is_defined]
            for entry in entries:
                await self._set_ttl(entry, None if pin else ttl)
            self._refuse_too_many(new)
            self._refuse_too_much(new)
            for entry in new:
                await self._inherit(entry)
                await self.telling.define(entry)
            if pin:
                await self._pin_all(entries, new, ttl)
            for entry in new:
                entry.is_defined = True
                old = self.entries.get(entry.name)
                self.entries[entry.name] = entry
                self.layouts[entry.name] = entry.layout
                if old is not None:
                    await self._withdraw(old)
                await self._hold_members(entry)
            self.publish(entries)
        return Registered(tuple(entries), bool(new))

    async def remove(self, name: str) -> None:
        """Unregister a schema; its blocks are freed when the last request using them ends.

        Raises:
            RefusedError: there is none of that name (404).
        """
        async with self.changing():
            entry = self[name]
            del self.entries[name], self.layouts[name]
            await self._withdraw(entry)
            if self._catalog is not None:
                self._catalog.remove(_SCHEMA, name)

    async def pin(self, name: str, modules: Iterable[str] | None = None) -> None:
        """Pin and encode a schema's units, or those of named modules: all or none.

        Raises:
            RefusedError: a name is unknown (404), or pinning would pass the limit (507).
        """
        async with self.changing():
            entry = self[name]
            placements = entry.placements_of(modules)
            await self.hold(placements)
            entry.pin(placements)
            self.publish([entry])

    async def unpin(self, name: str, modules: Iterable[str] | None = None) -> None:
        """Let units be dropped again when their blocks are wanted. Raises RefusedError (404)."""
        async with self.changing():
            entry = self[name]
            placements = entry.placements_of(modules)
            entry.unpin(placements)
            await self.release(placements)
            self.publish([entry])

    async def warm(self, name: str, modules: Iterable[str] | None = None) -> None:
        """Encode units now, without pinning them: a few at once, so that requests have their turn between.

        Raises:
            RefusedError: a name is unknown (404), or the KV cache is too small to encode them (507).
        """
        placements = self[name].placements_of(modules)
        before: Sequence[Placement] = ()
        for units in slices(placements, ENCODED_AT_ONCE):
            await self._wait_until_encoded(before)
            await self._start_encoding(units)
            before = units

    async def encode(self, placements: Sequence[Placement]) -> None:
        """Encode units without pinning them, and wait until they are.

        Raises:
            RefusedError: the KV cache is too small to encode them (507).
        """
        await self._start_encoding(placements)
        await self._wait_until_encoded(placements)

    @property
    def num_members(self) -> int:
        """The registered members of all pools."""
        return sum(len(entry.members) for entry in self.entries.values())

    async def status(self, entry: SchemaEntry) -> dict[Placement, Mapping[str, Any]]:
        """Residency, blocks and users of a schema's units."""
        return await self.status_of(entry.placements)

    async def stats(
        self, *, public: bool = False, tenants: bool = False, tenant: str | None = None
    ) -> dict[str, Any]:
        """The engine's counts, and the registry's; ``public`` ones leave out what tenants have. With
        ``tenants`` each tenant's are there as well; those of one ``tenant`` are nobody else's."""
        how = {"public": public, "tenants": tenants, "tenant": tenant}
        return {**await self.connection.call("stats", how), "schemas": len(self.entries)}

    async def status_of(self, placements: Sequence[Placement]) -> dict[Placement, Mapping[str, Any]]:
        """Residency, blocks and users of units."""
        found: dict[Placement, Mapping[str, Any]] = {}
        for units in slices(placements, TOLD_AT_ONCE):
            answer = await self.connection.call("status", {"units": units})
            found.update(zip(units, answer["units"], strict=True))
        return found

    async def _wait_until_encoded(self, placements: Sequence[Placement]) -> None:
        while any(unit["residency"] == "encoding" for unit in (await self.status_of(placements)).values()):
            await self.connection.pause()

    async def _start_encoding(self, placements: Sequence[Placement]) -> None:
        answer = await self.connection.call("warm", {"units": list(placements)})
        if refused := answer["refused"]:
            raise RefusedError(f"these modules cannot be encoded: {refused}", INSUFFICIENT_STORAGE)

    # -- several front ends ----------------------------------------------------------------------

    async def open(self) -> None:
        """Take over what is registered already, and tell engines of it that do not know."""
        async with self.changing():
            pass

    async def catch_up(self) -> None:
        """Take over what other front ends have changed; a query of the catalog where they have not."""
        if self._catalog is not None and self._catalog.has_changed():
            async with self._change:
                await self._take_over(self._catalog)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """The right to change what is registered, here and in the catalog."""
        async with self._change:
            if self._catalog is None:
                yield
                return
            async with self._catalog.changing():
                begins = self._catalog.begins_run()
                await self._take_over(self._catalog)
                if begins:
                    await self._tell_engines()
                yield

    async def _take_over(self, catalog: Catalog) -> None:
        found = catalog.entries(_SCHEMA)
        for name in self.entries.keys() - found.keys():
            self.entries.pop(name).is_defined = False
            del self.layouts[name]
        for name, said in found.items():
            entry = self.entries.get(name)
            if entry is None or entry.layout.digest != said["digest"]:
                if entry is not None:
                    entry.is_defined = False
                try:
                    node = schema_from_plain(said["schema"], name)
                    (layout,) = await self.connection.run(partial(self.builder.build, [node]))
                except ValueError as error:  # it was registered with another model, or format
                    logger.warning("Prompt cache: schema %r does not fit any more, and goes: %s", name, error)
                    catalog.remove(_SCHEMA, name)
                    continue
                entry = self.entries[name] = SchemaEntry(layout, said["source"], is_defined=True)
                self.layouts[name] = layout
            entry.take_pins(said["pinned"], said.get("ttls", ()))
            entry.ttl = said.get("ttl")
            await self.connection.run(partial(entry.take_members, said["members"], self.builder.encoder))

    async def _tell_engines(self) -> None:
        """Tell engines that have just started what was registered before."""
        for entry in self.entries.values():
            await self.telling.define(entry)
            for ttl in {entry.ending.get(placement) for placement in entry.pinned}:
                units = [placement for placement in entry.pinned if entry.ending.get(placement) == ttl]
                await self._call("pin", units, ttl)

    def publish(self, entries: Iterable[SchemaEntry]) -> None:
        """Tell other front ends of schemas as they are now."""
        if self._catalog is not None:
            said = {
                entry.name: {
                    "digest": entry.layout.digest,
                    "source": entry.source,
                    "pinned": list(entry.pinned),
                    "ttls": [[*placement, ttl] for placement, ttl in entry.ending.items()],
                    "ttl": entry.ttl,
                    "schema": to_plain(entry.layout.node),
                    "members": entry.members.to_plain(),
                }
                for entry in entries
            }
            self._catalog.put(_SCHEMA, said)

    # -- changes, with the lock held -------------------------------------------------------------

    async def _set_ttl(self, entry: SchemaEntry, ttl: float | None) -> None:
        """Have a schema's states go after another time."""
        if entry.ttl == ttl:
            return
        entry.ttl = ttl
        if entry.is_defined:  # a holder more, with the new time, and one less
            await self.telling.define(entry)
            await self.telling.forget(entry)

    def _same_or_new(self, layout: SchemaLayout, source: str) -> SchemaEntry:
        found = self.entries.get(layout.name)
        if found is not None and found.layout.digest == layout.digest:
            return found
        return SchemaEntry(layout, source)

    def _refuse_too_many(self, new: Iterable[SchemaEntry]) -> None:
        num_schemas = len(self.entries.keys() | {entry.name for entry in new})
        if num_schemas > self.max_schemas:
            what = f"there would be {num_schemas} schemas; max_schemas is {self.max_schemas}"
            raise RefusedError(f"{what}: delete some first", CONFLICT)

    def _refuse_too_much(self, new: Iterable[SchemaEntry]) -> None:
        entries = {**self.entries, **{entry.name: entry for entry in new}}
        num_bytes = sum(entry.num_bytes for entry in entries.values())
        if num_bytes > self.max_bytes:
            what = f"registered schemas would take {num_bytes} bytes of memory; {self.max_bytes} are allowed"
            raise RefusedError(f"{what}: delete some first", INSUFFICIENT_STORAGE)

    async def _inherit(self, entry: SchemaEntry) -> None:
        """Give a new version of a schema the members of the old one's pools."""
        old = self.entries.get(entry.name)
        if old is not None and len(old.members):
            move = partial(old.members.in_layout, entry.layout, self.builder.encoder)
            entry.members = await self.connection.run(move)

    async def _hold_members(self, entry: SchemaEntry) -> None:
        """Pin members that were pinned in the version before, as far as there is room."""
        for member in entry.members:
            if member.said.pin and not member.is_pinned:
                try:
                    await self.hold([member.unit.placement], member.said.ttl)
                except RefusedError:
                    return
                member.is_pinned = True
                entry.pin([member.unit.placement], member.said.ttl)

    async def _pin_all(self, entries: list[SchemaEntry], new: list[SchemaEntry], ttl: float | None) -> None:
        """Pin schemas, in the place of the versions that they replace; else leave all as it was."""
        replaced = [self.entries[entry.name] for entry in new if entry.name in self.entries]
        freed = self._not_held({placement for old in replaced for placement in old.pinned}, besides=replaced)
        await self._call("unpin", freed)
        try:
            await self.hold([placement for entry in entries for placement in entry.placements], ttl)
        except RefusedError:
            await self._call("pin", freed)
            for entry in new:
                await self.telling.forget(entry)
            raise
        for entry in entries:
            entry.pin(entry.placements, ttl)

    async def hold(self, placements: list[Placement], ttl: float | None = None) -> None:
        """Pin units in the engine, all or none, for ``ttl`` seconds after their last use.

        Raises RefusedError (507).
        """
        told = list[Placement]()
        for units in slices(placements, TOLD_AT_ONCE):
            answer = await self.connection.call("pin", {"units": units, "ttl": ttl})
            if answer["pinned"]:
                told += units
                continue
            await self.release(told + units if "engines" in answer else told)  # some may have pinned them
            what = "pinning these modules would pass pin_fraction, or the memory for what fills no block"
            pinned = f"{answer['blocks_pinned']} of {answer['blocks_pin_limit']} blocks are pinned"
            raise RefusedError(answer.get("refused") or f"{what}: {pinned}", INSUFFICIENT_STORAGE)

    async def _withdraw(self, entry: SchemaEntry) -> None:
        entry.is_defined, held = False, set(entry.pinned)
        entry.unpin(held)
        await self.release(held)
        await self.telling.forget(entry)

    async def release(self, placements: Iterable[Placement]) -> None:
        """Unpin units, but for those that another schema has pinned."""
        await self._call("unpin", self._not_held(placements))

    async def _call(self, operation: str, placements: Sequence[Placement], ttl: float | None = None) -> None:
        """A call over units, in parts between which the engine makes its steps."""
        for units in slices(placements, TOLD_AT_ONCE):
            await self.connection.call(operation, {"units": units, "ttl": ttl})

    def _not_held(
        self, placements: Iterable[Placement], besides: Collection[SchemaEntry] = ()
    ) -> list[Placement]:
        """Those units that no schema has pinned, ``besides`` left out."""
        entries = [entry for entry in self.entries.values() if entry not in besides]
        held = {placement for entry in entries for placement in entry.pinned}
        return [placement for placement in placements if placement not in held]
