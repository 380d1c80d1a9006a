"""What engines are told of schemas' units and of members of pools, and what they are told to forget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.frontend.connection import EngineConnection
from vllm_promptcache.frontend.entry import API, SchemaEntry
from vllm_promptcache.frontend.members import Member

# Units of one call to the engine, which answers between two steps: others have their turn between calls.
TOLD_AT_ONCE = 512

T = TypeVar("T")


class UnitTelling:
    """Tells engines of units, each as often as it is held, and to forget them as often.

    The units of an operator's own schemas are the same for all tenants, if ``shares_operators`` says so.
    """

    def __init__(self, connection: EngineConnection, *, shares_operators: bool) -> None:
        self._connection = connection
        self._shares_operators = shares_operators

    def is_shared(self, entry: SchemaEntry) -> bool:
        """Whether a schema's units are the same for all tenants: it came from the server's own settings."""
        return self._shares_operators and entry.source != API

    async def define(self, entry: SchemaEntry) -> None:
        """Tell the engine of a schema's units, which then has them until it forgets them."""
        texts = await self._connection.run(entry.texts)
        how = {"shared": self.is_shared(entry), "ttl": entry.ttl}
        for digests in slices(list(texts), TOLD_AT_ONCE):
            told = {digest: texts[digest] for digest in digests}
            await self._connection.call("define", {"texts": told, **how})
        await self.define_members(entry.members)

    async def forget(self, entry: SchemaEntry) -> None:
        """Have the engine forget a schema's units."""
        once = list({placement.digest: placement for placement in entry.placements}.values())
        for units in slices(once, TOLD_AT_ONCE):
            await self._connection.call("forget", {"units": units, "shared": self.is_shared(entry)})
        await self.forget_members(entry.members)

    async def define_members(self, members: Iterable[Member]) -> None:
        """Tell the engine of members' units, which it has until each is forgotten."""
        left = list(members)
        while left:
            # The same text under several names is held by each; and those of a call go after the same time.
            units: dict[str, Unit] = {}
            ttl = left[0].lasting
            again = []
            for member in left:
                unit = member.unit
                if member.lasting != ttl or len(units) >= TOLD_AT_ONCE or unit.digest in units:
                    again.append(member)
                else:
                    units[unit.digest] = unit
            texts = await self._connection.run(partial(units_to_wire, units.values()))
            told = {digest: texts[digest] for digest in units}
            await self._connection.call("define", {"texts": told, "ttl": ttl})
            left = again

    async def forget_members(self, members: Iterable[Member]) -> None:
        """Have the engine forget members' units."""
        for member in members:
            await self._connection.call("forget", {"units": [member.unit.placement]})


def slices(items: Sequence[T], num_items: int) -> Iterator[list[T]]:
    """The items in order, at most so many at once."""
    return (list(items[first : first + num_items]) for first in range(0, len(items), num_items))
