"""Repairs: which tokens of the modules that it includes a request computes anew.

What each means for what a token sees is in docs/semantics.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Bounds what is kept of each unit for link tokens, beside the KV cache (`blocks.heads`).
MAX_LINK_TOKENS = 1024

_ALLOWED = (
    f"'none', 'full', 'link:K' (K from 1 to {MAX_LINK_TOKENS}), 'tail', 'close', and 'link:K' with either of"
    " them, as 'link:K+tail'"
)
_PART = re.compile(r"(?P<tail>tail)|(?P<close>close)|link:(?P<link>[0-9]{1,9})")


@dataclass(frozen=True)
class Repair:
    """A repair; none by default.

    Attributes:
        link_tokens: how many kept tokens at the head of each unit are computed anew (EPIC's LegoLink).
        tail: whether what a unit holds behind something else is computed anew.
        close: whether, besides, what is new behind the last reused token stands right behind it.
        full: whether everything is computed anew; the others say nothing then.
    """

    link_tokens: int = 0
    tail: bool = False
    full: bool = False
    close: bool = False

    @classmethod
    def parse(cls, text: object) -> Repair:
        """Read a repair as users write it: ``none``, ``full``, ``link:16``, ``tail``, ``close``,
        ``link:16+tail``.

        Raises:
            ValueError: it is none of these; the message names what is allowed.
        """
        if text == "none":
            return NONE
        if text == "full":
            return FULL
        parts = [_PART.fullmatch(part) for part in text.split("+")] if isinstance(text, str) else [None]
        said = {part.lastgroup: part[part.lastgroup] for part in parts if part and part.lastgroup}
        if len(said) < len(parts):
            raise ValueError(f"unknown repair {text!r}; allowed are {_ALLOWED}")
        link = int(said.get("link", 1))
        if not 1 <= link <= MAX_LINK_TOKENS:
            raise ValueError(f"repair {text!r}: so many tokens are not allowed; allowed are {_ALLOWED}")
        return cls(
            link if "link" in said else 0,
            tail=not said.keys().isdisjoint({"tail", "close"}),
            close="close" in said,
        )

    def __str__(self) -> str:
        if self.full:
            return "full"
        parts = [f"link:{self.link_tokens}"] if self.link_tokens else []
        parts += ["close"] if self.close else ["tail"] if self.tail else []
        return "+".join(parts) or "none"


NONE = Repair()
FULL = Repair(full=True)
