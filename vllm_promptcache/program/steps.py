"""A prompt program as data: what its source says, before any PML is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """A parameter of at most `length` tokens for the function's argument `argument`, whose name it has too
    unless that is taken. `default` None with `required` false leaves a gap."""

    name: str
    argument: str
    length: int
    default: str | None
    required: bool


@dataclass(frozen=True)
class Text:
    """A line of text with fields in it."""

    parts: tuple[str | Field, ...]

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields in the text."""
        return tuple([part for part in self.parts if isinstance(part, Field)])


@dataclass(frozen=True)
class Module:
    """Steps under a name. `applies` says whether a prompt with these arguments includes it.

    `bind` gives the arguments that its steps see: those of the program that they stand in.
    """

    name: str
    steps: tuple[Step, ...]
    applies: Callable[[Arguments], bool]
    bind: Callable[[Arguments], Arguments]


@dataclass(frozen=True)
class Choice:
    """A union: the first module that applies is included."""

    name: str | None
    modules: tuple[Module, ...]


@dataclass(frozen=True)
class Message:
    """Steps in a chat role. Modules in it belong to what it stands in."""

    role: str
    steps: tuple[Step, ...]


Step = Text | Module | Choice | Message
