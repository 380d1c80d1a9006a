"""Ways of answering over modules: how they are encoded, and what is repaired for the request.

A name is an encoding and, after a plus sign each, repairs: ``context``, ``isolated+link:16``. What each
means as an attention mask is written down in docs/semantics.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.contract.repair import FULL as FULL_REPAIR
from vllm_promptcache.contract.repair import NONE, Repair

FULL = "full"
# What each encoding is in PML: the schema's `encode`, and whether its modules are one scaffold.
ENCODINGS: dict[str, tuple[str, bool]] = {
    FULL: ("context", False),
    "isolated": ("isolated", False),
    "context": ("context", False),
    "scaffold": ("context", True),
    "sequence": ("sequence", False),
}
DEFAULT_WAYS = (
    "full,isolated,context,scaffold,sequence,sequence+tail,isolated+link:16,context+tail,context+link:16,"
    "context+tail+link:16,context+tail+link:32"
)


@dataclass(frozen=True)
class Way:
    """A way of answering. ``isolated+link:16`` encodes modules ``isolated`` and repairs with ``link:16``.

    ``parts`` are the repairs as they are written on the command line, in that order.
    """

    encoding: str
    parts: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Way:
        """The way of a name.

        Raises:
            ValueError: the encoding or a repair is unknown.
        """
        encoding, *parts = text.strip().split("+")
        if encoding not in ENCODINGS:
            raise ValueError(f"unknown way {text!r}: encodings are {', '.join(ENCODINGS)}")
        way = cls(encoding, tuple(parts))
        if parts and way.is_full:
            raise ValueError(f"{text!r}: full prefill reuses nothing that could be repaired")
        if parts and way.repair in (NONE, FULL_REPAIR):
            raise ValueError(f"{text!r}: {parts[0]!r} cannot be added to an encoding")
        return way

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return "+".join((self.encoding, *self.parts))

    @property
    def base(self) -> Way:
        """The same encoding without any repair."""
        return Way(self.encoding)

    @property
    def family(self) -> str:
        """Encoding and repairs that have no argument: ways of one family differ in how much they repair."""
        return "+".join((self.encoding, *(part for part in self.parts if ":" not in part)))

    @property
    def is_full(self) -> bool:
        """Whether nothing is reused."""
        return self.encoding == FULL

    @property
    def repair(self) -> Repair:
        """What is computed anew."""
        return FULL_REPAIR if self.is_full else Repair.parse("+".join(self.parts) or "none")


def read_ways(text: str) -> list[Way]:
    """Ways by their names, separated by commas; full prefill, which all are compared with, comes first."""
    ways = [Way.read(name) for name in text.split(",") if name.strip()]
    return list(dict.fromkeys([Way(FULL), *ways]))
