"""Registering members of pools: one, thousands at once, and what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_promptcache.contract.unit import Placement
from vllm_promptcache.errors import quote, unknown
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import CONFLICT, INSUFFICIENT_STORAGE, NOT_FOUND, RefusedError
from vllm_promptcache.frontend.members import Member, MemberError, NewMember, make_member
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.layout.parts import PoolLayout

# Members that are laid out, told and answered in one go, and that are encoded at once: requests have their
# turn in between.
AT_ONCE = 64
ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Put:
    """What became of a member: `registered`, `replaced` or `unchanged`, or an `error`."""

    name: str
    status: str
    num_tokens: int = 0
    error: str | None = None


@dataclass
class Progress:
    """How many of the members of the pool that were to be encoded ahead have been."""

    done: int = 0
    total: int = 0


class PoolRegistry:
    """The members of a registry's pools. At most `max_members` are registered in all."""

    def __init__(self, registry: SchemaRegistry, max_members: int) -> None:
        self._registry = registry
        self._max_members = max_members
        self._progress: dict[str, Progress] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def pool(self, schema: str, name: str) -> tuple[SchemaEntry, PoolLayout]:
        """A schema's pool, by its path in the schema. Raises RefusedError (404) where there is none."""
        entry = self._registry[schema]
        pool = entry.layout.pools.get(f"{schema}/{name}")
        if pool is None:
            names = [path.partition("/")[2] for path in entry.layout.pools]
            raise RefusedError(f"schema {quote(schema)}: {unknown('pool', name, names)}", NOT_FOUND)
        return entry, pool

    def member(self, schema: str, pool: str, name: str) -> Member:
        """A registered member. Raises RefusedError (404) where there is none."""
        entry, layout = self.pool(schema, pool)
        member = entry.members.of(layout.path).get(name)
        if member is None:
            what = unknown("module", name, entry.members.of(layout.path))
            raise RefusedError(f"pool {quote(pool)}: {what}", NOT_FOUND)
        return member

    def progress(self, pool: PoolLayout) -> Progress:
        """How far the members that were registered together are encoded."""
        return self._progress.get(pool.path, Progress())

    async def put(self, schema: str, pool: str, members: Sequence[NewMember]) -> list[Put]:
        """Register members, each for itself; those that are wrong are told of, and no others suffer.

        Raises:
            RefusedError: there is no such pool (404), or there are too many members (409).
        """
        registry = self._registry
        async with registry.changing():
            entry, layout = self.pool(schema, pool)
            encoder = registry.builder.encoder
            made = await registry.connection.run(lambda: [_made(layout, said, encoder) for said in members])
            if registry.num_members + len(members) > self._max_members:
                raise RefusedError(f"there would be more than {self._max_members} members", CONFLICT)
            new = [member for member in made if isinstance(member, Member)]
            await registry.telling.define_members(new)
            puts = []
            for said, member in zip(members, made, strict=True):
                puts.append(
                    await self._take(entry, layout, member)
                    if isinstance(member, Member)
                    else Put(said.name, "refused", error=member)
                )
            registry.publish([entry])
        return puts

    async def remove(self, schema: str, pool: str, name: str) -> None:
        """Unregister a member. Raises RefusedError (404) where there is none."""
        async with self._registry.changing():
            self.member(schema, pool, name)
            entry, layout = self.pool(schema, pool)
            if (member := entry.members.remove(layout.path, name)) is not None:
                await self._let_go(entry, member)
            self._registry.publish([entry])

    def encode_ahead(self, schema: str, pool: str, names: Iterable[str]) -> None:
        """Encode members in the background, a few at once. Needs an event loop."""
        task = asyncio.get_running_loop().create_task(self.encode(schema, pool, list(names)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def encode(self, schema: str, pool: str, names: Sequence[str]) -> None:
        """Encode members, a few at once, unless they are gone meanwhile or do not fit."""
        path = f"{schema}/{pool}"
        progress = self._progress.setdefault(path, Progress())
        if progress.done == progress.total:
            progress.done = progress.total = 0
        progress.total += len(names)
        for first in range(0, len(names), ENCODED_AT_ONCE):
            some = names[first : first + ENCODED_AT_ONCE]
            try:
                members = self.pool(schema, pool)[0].members.of(path)
                placements = [members[name].unit.placement for name in some if name in members]
                await self._registry.encode(placements)
            except RefusedError:
                pass  # the schema is gone, or the cache is too small for one: whoever uses it hears of it
            progress.done += len(some)

    # -- with the right to change ------------------------------------------------------------------

    async def _take(self, entry: SchemaEntry, pool: PoolLayout, member: Member) -> Put:
        name = member.said.name
        old = entry.members.of(pool.path).get(name)
        if old is not None and old.said == member.said and old.is_pinned == member.said.pin:
            await self._registry.telling.forget_members([member])
            return Put(name, "unchanged", member.num_tokens)
        if member.said.pin:
            try:
                await self._registry.hold([member.unit.placement], member.said.ttl)
            except RefusedError as refusal:
                await self._registry.telling.forget_members([member])
                return Put(name, "refused", error=str(refusal))
            member.is_pinned = True
            entry.pin([member.unit.placement], member.said.ttl)
        entry.members.put(pool.path, member)
        if old is not None:
            await self._let_go(entry, old)
        return Put(name, "registered" if old is None else "replaced", member.num_tokens)

    async def _let_go(self, entry: SchemaEntry, member: Member) -> None:
        if member.is_pinned:
            await self._unpin(entry, member.unit.placement)
        await self._registry.telling.forget_members([member])

    async def _unpin(self, entry: SchemaEntry, placement: Placement) -> None:
        if not any(other.is_pinned and other.unit.placement == placement for other in entry.members):
            entry.unpin([placement])
            await self._registry.release([placement])


def _made(pool: PoolLayout, said: NewMember, encoder: Any) -> Member | str:
    """The member, or what is wrong with it."""
    if said.name in pool.members:
        return f"the schema declares a module {quote(said.name)} in the pool"
    try:
        return make_member(pool, said, encoder)
    except MemberError as error:
        return str(error)


def problem_of(put: Put) -> RefusedError:
    """A member that was refused, as the answer to a request for it alone."""
    what = put.error or ""
    status = INSUFFICIENT_STORAGE if "pin_fraction" in what else 400
    return RefusedError(f"module {quote(put.name)}: {what}", status)
