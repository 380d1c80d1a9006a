"""Repairs: which tokens of the modules that it includes a request computes anew.

What each means for what a token sees is in docs/semantics.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Bounds what is kept of each unit for link tokens, beside the KV cache (`blocks.heads`).
MAX_LINK_TOKENS = 1024

_ALLOWED = (
    f"'none', 'full', 'link:K' (K from 1 to {MAX_LINK_TOKENS}), 'tail', and the last two together as"
    " 'link:K+tail'"
)
_PARTS = re.compile(r"link:(?P<before>[0-9]{1,9})(\+tail)?|tail(\+link:(?P<after>[0-9]{1,9}))?")


@dataclass(frozen=True)
class Repair:
    """A repair; none by default.

    Attributes:
        link_tokens: how many kept tokens at the head of each unit are computed anew (EPIC's LegoLink).
        tail: whether what a unit holds behind something else is computed anew.
        full: whether everything is computed anew; the others say nothing then.
    """

    link_tokens: int = 0
    tail: bool = False
    full: bool = False

    @classmethod
    def parse(cls, text: object) -> Repair:
        """Read a repair as users write it: ``none``, ``full``, ``link:16``, ``tail``, ``link:16+tail``.

        Raises:
            ValueError: it is none of these; the message names what is allowed.
        """
        if text == "none":
            return NONE
        if text == "full":
            return FULL
        found = _PARTS.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"unknown repair {text!r}; allowed are {_ALLOWED}")
        link = found["before"] or found["after"]
        if link is not None and not 1 <= int(link) <= MAX_LINK_TOKENS:
            raise ValueError(f"repair {text!r}: so many tokens are not allowed; allowed are {_ALLOWED}")
        return cls(int(link or 0), tail="tail" in found[0])

    def __str__(self) -> str:
        if self.full:
            return "full"
        parts = [f"link:{self.link_tokens}"] if self.link_tokens else []
        return "+".join([*parts, "tail"] if self.tail else parts) or "none"


NONE = Repair()
FULL = Repair(full=True)
