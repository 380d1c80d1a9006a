"""Ways of answering over modules: how they are encoded, and what is repaired for the request.

A name is an encoding and, after a plus sign each, repairs: ``context``, ``isolated+link:16``. What each
means as an attention mask is written down in docs/semantics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.quality.tail import renew_tails
from vllm_promptcache.plan.link import link
from vllm_promptcache.plan.plan import Plan
from vllm_promptcache.plan.without_reuse import without_reuse

FULL = "full"
# What each encoding is in PML: the schema's `encode`, and whether its modules are one scaffold.
ENCODINGS: dict[str, tuple[str, bool]] = {
    FULL: ("context", False),
    "isolated": ("isolated", False),
    "context": ("context", False),
    "scaffold": ("context", True),
}
DEFAULT_WAYS = (
    "full,isolated,context,scaffold,isolated+link:16,isolated+link:32,context+link:16,context+link:32,"
    "context+tail,context+tail+link:8,context+tail+link:16,context+tail+link:32"
)


@dataclass(frozen=True)
class RepairKind:
    """What a repair makes of a plan, by its argument, and how many link tokens it needs units encoded for."""

    change: Callable[[Plan, str], Plan]
    head_tokens: Callable[[str], int] = lambda _: 0


def _renew_tails(plan: Plan, argument: str) -> Plan:
    if argument:
        raise ValueError(f"'tail' takes no argument, but has {argument!r}")
    return renew_tails(plan)


# A new repair takes a line here. One that the engine carries out by itself (`select:r`) leaves the plan as
# it is and adds to what the engine is told: see `Prompt.extra_args`.
REPAIRS: dict[str, RepairKind] = {
    "link": RepairKind(lambda plan, argument: link(plan, int(argument)), int),
    "tail": RepairKind(_renew_tails),
}


@dataclass(frozen=True)
class Repair:
    """A repair by name with its argument: ``link:16``."""

    name: str
    argument: str

    def __str__(self) -> str:
        return f"{self.name}:{self.argument}" if self.argument else self.name


@dataclass(frozen=True)
class Way:
    """A way of answering. ``isolated+link:16`` encodes modules ``isolated`` and repairs with ``link:16``."""

    encoding: str
    repairs: tuple[Repair, ...] = ()

    @classmethod
    def read(cls, text: str) -> Way:
        """The way of a name.

        Raises:
            ValueError: the encoding or a repair is unknown.
        """
        encoding, *named = text.strip().split("+")
        repairs = tuple(Repair(*_name_and_argument(one)) for one in named)
        unknown = [repair.name for repair in repairs if repair.name not in REPAIRS]
        if encoding not in ENCODINGS or unknown:
            known = f"encodings are {', '.join(ENCODINGS)}; repairs are {', '.join(REPAIRS)}"
            raise ValueError(f"unknown way {text!r}: {known}")
        way = cls(encoding, repairs)
        if repairs and way.is_full:
            raise ValueError(f"{text!r}: full prefill reuses nothing that could be repaired")
        if way.head_tokens < 0:
            raise ValueError(f"{text!r}: tokens cannot be fewer than none")
        return way

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        return "+".join((self.encoding, *map(str, self.repairs)))

    @property
    def base(self) -> Way:
        """The same encoding without any repair."""
        return Way(self.encoding)

    @property
    def family(self) -> str:
        """Encoding and repairs that have no argument: ways of one family differ in how much they repair."""
        return "+".join((self.encoding, *(r.name for r in self.repairs if not r.argument)))

    @property
    def is_full(self) -> bool:
        """Whether nothing is reused."""
        return self.encoding == FULL

    @property
    def head_tokens(self) -> int:
        """How many tokens at the head of a unit are computed anew."""
        return max((REPAIRS[r.name].head_tokens(r.argument) for r in self.repairs), default=0)

    def apply(self, plan: Plan) -> Plan:
        """What is asked of the engine instead of the plan over modules."""
        if self.is_full:
            return without_reuse(plan)
        for repair in self.repairs:
            plan = REPAIRS[repair.name].change(plan, repair.argument)
        return plan


def read_ways(text: str) -> list[Way]:
    """Ways by their names, separated by commas; full prefill, which all are compared with, comes first."""
    ways = [Way.read(name) for name in text.split(",") if name.strip()]
    return list(dict.fromkeys([Way(FULL), *ways]))


def _name_and_argument(text: str) -> tuple[str, str]:
    name, _, argument = text.partition(":")
    return name, argument
