"""A schema as the front end holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.errors import quote, unknown
from vllm_promptcache.frontend.errors import NOT_FOUND, RefusedError
from vllm_promptcache.frontend.members import PoolMembers
from vllm_promptcache.frontend.sizes import layout_bytes
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ModuleLayout
from vllm_promptcache.layout.schema import SchemaLayout

# Where a schema came from that is not the operator's: clients may register it.
API = "api"


# Not frozen: whether the engine holds it, and what is pinned, changes.
@dataclass(eq=False)
class SchemaEntry:
    """One version of a schema.

    ``source`` says where it came from: a file, ``api`` or ``request``. ``is_defined`` is true while the
    engine knows the texts of its units; ``pinned`` holds those that are pinned.
    ``num_requests`` counts the prompts over it that had no salt. ``members`` are those of its pools that
    were registered. Pins that are ``ending`` do so when nobody has used them for so many seconds, and states
    that are not pinned go after ``ttl``. ``stamp`` is what the chat template said of
    the date when the layout was last looked at.
    """

    layout: SchemaLayout
    source: str
    is_defined: bool = False
    pinned: set[Placement] = field(default_factory=set)
    ending: dict[Placement, float] = field(default_factory=dict)
    ttl: float | None = None
    num_requests: int = 0
    members: PoolMembers = field(default_factory=PoolMembers)
    stamp: str = ""

    @property
    def name(self) -> str:
        """The schema's name."""
        return self.layout.name

    @cached_property
    def placements(self) -> tuple[Placement, ...]:
        """Its units where they stand, each once, contexts first."""
        return tuple(dict.fromkeys(unit.placement for unit in self.layout.units))

    @property
    def is_pinned(self) -> bool:
        """Whether all of its units are pinned."""
        return bool(self.placements) and self.pinned.issuperset(self.placements)

    def defines(self, unit: Unit) -> bool:
        """Whether a unit is one of the schema's own, or a registered member's."""
        return unit in self.layout.unit_places or unit in self.members

    def pin(self, placements: Iterable[Placement], ttl: float | None = None) -> None:
        """Units are pinned, for ever or for so many seconds after their last use."""
        for placement in placements:
            self.pinned.add(placement)
            if ttl is None:
                self.ending.pop(placement, None)
            else:
                self.ending[placement] = ttl

    def unpin(self, placements: Iterable[Placement]) -> None:
        """Units are not pinned any more."""
        gone = set(placements)
        self.pinned -= gone
        for placement in gone & self.ending.keys():
            del self.ending[placement]
        for member in self.members if gone else ():
            member.is_pinned = member.is_pinned and member.unit.placement not in gone

    def take_pins(self, pinned: Iterable[Iterable[Any]], ttls: Iterable[Iterable[Any]]) -> None:
        """Have the pins that are said of another front end's, and no others."""
        self.pinned = {Placement(*placement) for placement in pinned}
        self.ending = {Placement(digest, position): ttl for digest, position, ttl in ttls}

    def take_members(self, said: Mapping[str, list[Any]], encoder: TextEncoder) -> None:
        """Have the registered members that are ``said`` of another front end's, and no others."""
        self.members = self.members.as_said(said, self.layout, encoder)
        for member in self.members:
            member.is_pinned = member.unit.placement in self.pinned

    def texts(self) -> dict[str, Any]:
        """What the engine needs to encode its units."""
        return units_to_wire(self.layout.units)

    def placements_of(self, modules: Iterable[str] | None) -> list[Placement]:
        """Named modules' own units; of all units where None is given.

        A module is named by its path from the schema, as ``overseas/maldives``, a scaffold by its id.

        Raises:
            RefusedError: a module is unknown, or has no text of its own that is cached.
        """
        if modules is None:
            return list(self.placements)
        return [self._placement_of(name) for name in dict.fromkeys(modules)]

    def _placement_of(self, name: str) -> Placement:
        found = self._by_path.get(name)
        if found is not None and found.unit is not None:
            return found.unit.placement
        if (member := self._member(name)) is not None:
            return member.placement
        if name in self._by_id:
            return self._by_id[name].placement
        if found is not None:
            raise RefusedError(f"module {quote(name)} has no cached text of its own", field="modules")
        message = unknown("module", name, self._by_path)
        raise RefusedError(f"schema {self.name!r}: {message}", NOT_FOUND, field="modules")

    def _member(self, name: str) -> Unit | None:
        """The unit of a pool's member, by its path."""
        for path, pool in self.layout.pools.items():
            for prefix in (f"{path}/", f"{path.partition('/')[2]}/"):
                if name.startswith(prefix):
                    called = name.removeprefix(prefix)
                    if called in pool.members:
                        return pool.members[called].unit
                    if called in self.members.of(path):
                        return self.members.of(path)[called].unit
        return None

    @cached_property
    def num_tokens(self) -> int:
        """How many tokens its cached text has."""
        return sum(module.num_tokens for module in self.layout.modules)

    @cached_property
    def num_bytes(self) -> int:
        """What it holds in memory, or more."""
        return layout_bytes(self.layout)

    @cached_property
    def _by_id(self) -> dict[str, Unit]:
        """Scaffolds' units by their ids."""
        return {scaffold.unit.id: scaffold.unit for scaffold in reversed(self.layout.scaffolds)}

    @cached_property
    def _by_path(self) -> dict[str, ModuleLayout]:
        """Modules by path, with and without the schema's name in front."""
        paths = {module.path: module for module in self.layout.modules}
        return {path.partition("/")[2]: module for path, module in paths.items() if "/" in path} | paths
