"""Repairs by name: which tokens of the modules that it includes a request computes anew.

What each means for what a token sees is in docs/semantics.md; `repairs` carries them out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

# Bounds what is kept of each unit for link tokens, beside the KV cache (`blocks.heads`).
MAX_LINK_TOKENS = 1024

# What is said where nothing can be reused, and no repair means anything.
RECURRENT = (
    "this model has recurrent layers: of modules nothing is reused but what is a prefix in vLLM's own cache,"
    " and positions follow each other without gaps"
)

_ALLOWED = (
    f"'none', 'full', 'link:K' (K from 1 to {MAX_LINK_TOKENS}), 'auto', 'tail', 'close', and 'link:K' with"
    " any of them, as 'link:K+tail'"
)
# Steps that go together, as they are written: the name, and the number that one may have at most.
_TOGETHER = {"link": MAX_LINK_TOKENS, "auto": None, "tail": None, "close": None}
_STEP = re.compile(r"(?P<name>[a-z]+)(?::(?P<number>[0-9]{1,9}))?")


class Step(NamedTuple):
    """One of the things that a repair does: its name and, if it takes one, a number."""

    name: str
    number: int | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number}"


@dataclass(frozen=True)
class Repair:
    """A repair as a user names it: steps, each of another name, in the order of writing; none by default."""

    steps: tuple[Step, ...] = ()

    @classmethod
    def parse(cls, text: object) -> Repair:
        """Read a repair as users write it: ``none``, ``full``, ``link:16``, ``auto``, ``tail``,
        ``close``, ``link:16+tail``.

        Raises:
            ValueError: it is none of these; the message names what is allowed.
        """
        if text == str(NONE):
            return NONE
        if text == str(FULL):
            return FULL
        found = [_STEP.fullmatch(part) for part in text.split("+")] if isinstance(text, str) else [None]
        steps = {part["name"]: part["number"] for part in found if part}
        if len(steps) < len(found) or any(
            name not in _TOGETHER or (number is None) is not (_TOGETHER[name] is None)
            for name, number in steps.items()
        ):
            raise ValueError(f"unknown repair {text!r}; allowed are {_ALLOWED}")
        said = {name: None if number is None else int(number) for name, number in steps.items()}
        for name, number in said.items():
            if number is not None and not 1 <= number <= (_TOGETHER[name] or 0):
                raise ValueError(f"repair {text!r}: so many tokens are not allowed; allowed are {_ALLOWED}")
        # Each does what those before it do as well.
        for name in ("auto", "tail", "close")[: -1 if "close" in said else -2 if "tail" in said else 0]:
            said.pop(name, None)
        return cls(tuple(Step(name, said[name]) for name in _TOGETHER if name in said))

    @property
    def link_tokens(self) -> int:
        """How many kept tokens at the beginning of each unit are computed anew."""
        return next((step.number or 0 for step in self.steps if step.name == "link"), 0)

    def __str__(self) -> str:
        return "+".join(map(str, self.steps)) or "none"


NONE = Repair()
AUTO = Repair((Step("auto"),))
TAIL = Repair((Step("tail"),))
FULL = Repair((Step("full"),))
