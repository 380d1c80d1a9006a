"""A schema as the front end holds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.errors import unknown
from vllm_promptcache.frontend.errors import NOT_FOUND, RefusedError
from vllm_promptcache.layout.parts import ModuleLayout
from vllm_promptcache.layout.schema import SchemaLayout


# Not frozen: whether the engine holds it, and what is pinned, changes.
@dataclass(eq=False)
class SchemaEntry:
    """One version of a schema.

    ``source`` says where it came from: a file, ``api`` or ``request``. ``is_defined`` is true while the
    engine knows the texts of its units; ``pinned`` holds the digests of those that are pinned.
    ``num_requests`` counts the prompts over it.
    """

    layout: SchemaLayout
    source: str
    is_defined: bool = False
    pinned: set[str] = field(default_factory=set)
    num_requests: int = 0

    @property
    def name(self) -> str:
        """The schema's name."""
        return self.layout.name

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """The digests of its units, each once, contexts first."""
        return tuple(dict.fromkeys(unit.digest for unit in self.layout.units))

    @property
    def is_pinned(self) -> bool:
        """Whether all of its units are pinned."""
        return bool(self.digests) and self.pinned.issuperset(self.digests)

    def texts(self) -> dict[str, Any]:
        """What the engine needs to encode its units."""
        return units_to_wire(self.layout.units)

    def digests_of(self, modules: Iterable[str] | None) -> list[str]:
        """The digests of named modules' own units; of all units where None is given.

        A module is named by its path from the schema, as ``overseas/maldives``, a scaffold by its id.

        Raises:
            RefusedError: a module is unknown, or has no text of its own that is cached.
        """
        if modules is None:
            return list(self.digests)
        return [self._digest_of(name) for name in modules]

    def _digest_of(self, name: str) -> str:
        found = self._by_path.get(name)
        if found is not None and found.unit is not None:
            return found.unit.digest
        for scaffold in self.layout.scaffolds:
            if scaffold.unit.id == name:
                return scaffold.unit.digest
        if found is not None:
            raise RefusedError(f"module {name!r} has no cached text of its own", field="modules")
        message = unknown("module", name, self._by_path)
        raise RefusedError(f"schema {self.name!r}: {message}", NOT_FOUND, field="modules")

    @cached_property
    def _by_path(self) -> dict[str, ModuleLayout]:
        """Modules by path, with and without the schema's name in front."""
        paths = {module.path: module for module in self.layout.modules}
        return {path.partition("/")[2]: module for path, module in paths.items() if "/" in path} | paths
