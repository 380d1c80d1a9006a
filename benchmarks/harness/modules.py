"""Schemas of modules and the prompts that pick from them, as PML and as plain tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from benchmarks.harness.text import TextSource, ragged_lengths


@dataclass(frozen=True)
class Module:
    """A module's name, its text, and the text's tokens."""

    name: str
    text: str
    token_ids: tuple[int, ...]

    def to_pml(self) -> str:
        """The module in PML."""
        return f'<module name="{self.name}">{escape(self.text)}</module>'


@dataclass(frozen=True)
class Schema:
    """A schema of modules side by side, each encoded on its own."""

    name: str
    modules: tuple[Module, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all modules."""
        return sum(len(m.token_ids) for m in self.modules)

    def to_pml(self) -> str:
        """The schema in PML."""
        body = "".join(m.to_pml() for m in self.modules)
        return f'<schema name="{self.name}">{body}</schema>'

    def prompt(self, modules: Iterable[Module] | None = None) -> str:
        """A prompt that includes some modules, all by default."""
        chosen = self.modules if modules is None else modules
        return prompt_pml(self.name, (m.name for m in chosen))

    def in_one(self) -> str:
        """A self-contained document: the schema, and a prompt that includes all of it."""
        return f"<pml>{self.to_pml()}{self.prompt()}</pml>"


def prompt_pml(schema: str, elements: Iterable[str]) -> str:
    """A prompt that includes modules by name."""
    return f'<prompt schema="{schema}">{"".join(f"<{name}/>" for name in elements)}</prompt>'


def joined_ids(modules: Iterable[Module]) -> list[int]:
    """The modules' tokens, one module after another: what a user without modules would send."""
    return [token_id for module in modules for token_id in module.token_ids]


def joined_text(modules: Iterable[Module]) -> str:
    """The modules' text, one module after another."""
    return "".join(module.text for module in modules)


def make_module(name: str, num_tokens: int, source: TextSource) -> Module:
    """A module of the next ``num_tokens`` tokens of a source."""
    text = source.take(num_tokens)
    return Module(name, text, tuple(source.token_ids(text)))


def make_schema(
    name: str, num_tokens: int, num_modules: int, source: TextSource, rng: np.random.Generator
) -> Schema:
    """A schema of ``num_tokens`` in modules of ragged lengths."""
    lengths = ragged_lengths(num_tokens, num_modules, rng)
    return Schema(name, tuple(make_module(f"m{i}", n, source) for i, n in enumerate(lengths)))


def shuffled(modules: Sequence[Module], rng: np.random.Generator) -> list[Module]:
    """The modules in another order."""
    return [modules[i] for i in rng.permutation(len(modules))]


def some(modules: Sequence[Module], rng: np.random.Generator) -> list[Module]:
    """Half of the modules, at random, in their order."""
    chosen = rng.choice(len(modules), max(len(modules) // 2, 1), replace=False)
    return [modules[i] for i in sorted(chosen.tolist())]
