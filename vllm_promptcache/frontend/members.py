"""Members of pools that were registered, beside the ones that a schema declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ModuleLayout, PoolLayout
from vllm_promptcache.layout.pools import lay_out_member, too_long
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.nodes import ModuleNode, TextNode
from vllm_promptcache.pml.source import Place, Source


class NewMember(NamedTuple):
    """A member as it is registered: `pin` holds its states. `ttl` seconds after their last use, if it is
    given, pinned states are held no more, and others go."""

    name: str
    text: str
    ttl: float | None = None
    pin: bool = False


# Not frozen: it is used, and its pin ends.
@dataclass(eq=False, slots=True)
class Member:
    """A member and its place in a pool."""

    said: NewMember
    layout: ModuleLayout
    is_pinned: bool = False

    @property
    def unit(self) -> Unit:
        """What is encoded of it."""
        assert self.layout.unit is not None, "a member without a token is refused"
        return self.layout.unit

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return self.layout.num_tokens

    @property
    def lasting(self) -> float | None:
        """After how many seconds without use its states go; a pinned one's pin ends then instead."""
        return None if self.said.pin else self.said.ttl


class MemberError(ValueError):
    """A member that is refused, with the reason."""


def make_member(pool: PoolLayout, said: NewMember, encoder: TextEncoder) -> Member:
    """A member laid out in a pool. Raises MemberError where it has no token, or does not fit."""
    place = Place(Source("modules", b""), 0, None, "module", said.name)
    texts = (TextNode(said.text, place),) if said.text else ()
    layout = lay_out_member(pool, ModuleNode(said.name, True, texts, place), encoder)
    if layout.unit is None:
        raise MemberError("it has no token")
    if problem := too_long(pool, layout):
        raise MemberError(problem)
    return Member(said, layout)


class PoolMembers:
    """The registered members of one schema's pools, by the pools' paths and their names.

    Seen as a mapping of mappings to layouts where a prompt looks its members up.
    """

    def __init__(self) -> None:
        self._pools: dict[str, dict[str, Member]] = {}
        self._units: set[Unit] = set()
        self._have_times = False

    def __iter__(self) -> Iterator[Member]:
        return (member for members in self._pools.values() for member in members.values())

    def __len__(self) -> int:
        return sum(map(len, self._pools.values()))

    def __contains__(self, unit: object) -> bool:
        """Whether a unit is a member's."""
        return unit in self._units

    def of(self, pool: str) -> Mapping[str, Member]:
        """The members of a pool."""
        return self._pools.get(pool, {})

    def get(self, pool: str, default: Mapping[str, ModuleLayout], /) -> Mapping[str, ModuleLayout]:
        """What a prompt looks up in a pool."""
        members = self._pools.get(pool)
        return default if members is None else _Layouts(members)

    def put(self, pool: str, member: Member) -> Member | None:
        """Add a member; returns the one in whose place it stands."""
        members = self._pools.setdefault(pool, {})
        old = members.get(member.said.name)
        members[member.said.name] = member
        self._units.add(member.unit)
        self._have_times = self._have_times or member.lasting is not None
        if old is not None:
            self._units.discard(old.unit)
        return old

    def remove(self, pool: str, name: str) -> Member | None:
        """Remove a member and return it, if it is there."""
        member = self._pools.get(pool, {}).pop(name, None)
        if member is not None:
            self._units.discard(member.unit)
        return member

    @property
    def have_times(self) -> bool:
        """Whether there has been any that goes after some time; pins that end are the schema's."""
        return self._have_times

    def placements(self) -> list[Placement]:
        """Where members are at home."""
        return [member.unit.placement for member in self]

    def to_plain(self) -> dict[str, list[Any]]:
        """What is said of each member, by the pools' paths, in JSON's types."""
        return {
            path: [list(member.said) for member in members.values()] for path, members in self._pools.items()
        }

    def as_said(
        self, said: Mapping[str, Iterable[Any]], layout: SchemaLayout, encoder: TextEncoder
    ) -> PoolMembers:
        """The members that `to_plain` tells of, those that are here already as they are."""
        found = PoolMembers()
        for path, members in said.items():
            for plain in members if path in layout.pools else ():
                new = NewMember(*plain)
                member = self.of(path).get(new.name)
                if member is None or member.said != new or member.unit.context != layout.pools[path].context:
                    member = make_member(layout.pools[path], new, encoder)
                found.put(path, member)
        return found

    def in_layout(self, layout: SchemaLayout, encoder: TextEncoder) -> PoolMembers:
        """The same members in another version of the schema: those that still have a pool and fit it."""
        moved = PoolMembers()
        for path, members in self._pools.items():
            pool = layout.pools.get(path)
            if pool is None:
                continue
            for member in members.values():
                with suppress(MemberError):
                    moved.put(path, make_member(pool, member.said, encoder))
        return moved


class _Layouts(Mapping[str, ModuleLayout]):
    """Members' layouts by name."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members

    def __getitem__(self, name: str) -> ModuleLayout:
        return self._members[name].layout

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def first_members(members: Mapping[str, Member], after: str | None, limit: int) -> tuple[list[Member], bool]:
    """At most so many members by name, behind a name, and whether there are more."""
    names = sorted(name for name in members if after is None or name > after)
    return [members[name] for name in names[:limit]], len(names) > limit


def described(member: Member, residency: Callable[[Placement], Mapping[str, Any]]) -> dict[str, Any]:
    """A member in JSON's types."""
    unit = member.unit
    return {
        "object": "prompt_cache.module",
        "name": member.said.name,
        "digest": unit.digest,
        "tokens": member.num_tokens,
        "pinned": member.is_pinned,
        "ttl": member.said.ttl,
        "residency": residency(unit.placement)["residency"],
    }
