"""What may be meant by a name that a schema does not have where a prompt names it."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

from vllm_promptcache.errors import nearest, quote, unknown
from vllm_promptcache.layout.parts import ModuleLayout

NO_MEMBERS: Mapping[str, ModuleLayout] = {}


class Members(Protocol):
    """Members of pools that are in no schema's text, by the pools' paths and their names."""

    def get(self, pool: str, default: Mapping[str, ModuleLayout], /) -> Mapping[str, ModuleLayout]:
        """The members of a pool."""
        ...


def spellings(name: str) -> list[str]:
    """Other spellings of a name in characters that look the same: composed, and decomposed."""
    if name.isascii():
        return []
    return [other for form in ("NFC", "NFD") if (other := unicodedata.normalize(form, name)) != name]


class Hints:
    """Names of a schema's modules, wherever they stand, and of its pools' members."""

    def __init__(self, root: ModuleLayout, pool_members: Members) -> None:
        self._root = root
        self._pool_members = pool_members

    def unknown(self, module: ModuleLayout, name: str) -> str:
        """What is wrong with a name that is not known here: where it stands, or what is most like it."""
        here = [*module.children, *module.unions]
        near: str | None = name
        if name not in self.elsewhere and (
            nearest(name, here) is not None or (near := nearest(name, self.elsewhere)) is None
        ):
            return unknown("module", name, here)
        assert near is not None, "or there was nothing alike"
        path = self.elsewhere[near]
        meant = f"unknown module {quote(name)}; " + (
            "it" if near == name else f"did you mean {quote(near)}? It"
        )
        if path == near:
            return f"{meant} is directly in the schema: put it directly in the prompt"
        return (
            f"{meant} is in {quote(path.removesuffix(f'/{near}'))}: put it there, or write"
            f' <use module="{path}"/> directly in the prompt'
        )

    @cached_property
    def elsewhere(self) -> Mapping[str, str]:
        """The paths of all modules, and of pools' members, by their names; of those of one name, the first
        one's."""
        paths = {name: name for name in self._root.children}
        waiting = [(child, child.name) for child in self._root.children.values()]
        for module, path in waiting:
            inside = [*module.children]
            if module.pool is not None:
                inside += [*module.pool.members, *self._pool_members.get(module.pool.path, NO_MEMBERS)]
            for name in inside:
                paths.setdefault(name, f"{path}/{name}")
            waiting += [(child, f"{path}/{child.name}") for child in module.children.values()]
        return paths
