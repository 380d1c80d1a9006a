"""Reading an element's attributes, with an issue for each that is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

from vllm_promptcache.errors import IssueList, quote, unknown
from vllm_promptcache.pml.characters import describe_character
from vllm_promptcache.pml.reader import Element
from vllm_promptcache.pml.separators import SEPARATOR_KINDS
from vllm_promptcache.pml.space import SPACE_KINDS

ROLES = ("system", "user", "assistant")
RESERVED_NAMES = frozenset(
    {
        *("pml", "schema", "prompt", "module", "union", "pool", "use", "argument", "parameter", "param"),
        *("scaffold", *ROLES),
    }
)
# The alias and what it stands for (PML page, "Schema elements").
ALIASES = {"len": "length"}

MAX_NAME_CHARACTERS = 128

_NUMBER = re.compile(r"[0-9]{1,9}")


def name_problem(name: str) -> str | None:
    """What is wrong with a name, which may be any line of text (PML page, "Names"), or None."""
    # Nearly all are identifiers, which is found out faster.
    if len(name) > MAX_NAME_CHARACTERS:
        return f"the name {quote(name)} has {len(name)} characters; {MAX_NAME_CHARACTERS} are allowed"
    if name.isidentifier() or (name.isprintable() and name.strip()):
        return None
    bad = next((character for character in name if not character.isprintable()), "")
    if not name.strip():
        return "a name needs a character that can be seen"
    return f"the name {quote(name)} has {describe_character(bad)}: a name is one line of text"


class Attributes:
    """The attributes of one element. Methods add issues to the list and return a harmless value."""

    def __init__(self, element: Element, issues: IssueList, allowed: Sequence[str]) -> None:
        self._element = element
        self._issues = issues
        self._values: dict[str, str] = {}
        self._written: dict[str, str] = {}
        for written, value in element.attributes.items():
            name = ALIASES.get(written, written)
            if name not in allowed:
                self._issue(unknown("attribute", written, allowed), written)
                # Read as what was meant, so that one mistake does not make another.
                for near in get_close_matches(written[:64], allowed, n=1):
                    self._values.setdefault(near, value)
                    self._written.setdefault(near, written)
            elif name in self._values:
                self._issue(f"{written!r} and {self._written[name]!r} mean the same", written)
            else:
                self._values[name], self._written[name] = value, written

    def text(self, name: str) -> str | None:
        """The value as written, or None."""
        return self._values.get(name)

    def name(self, required: bool = True) -> str | None:
        """The element's name, or None where it is missing.

        One that is not allowed is returned too: what refers to it is no second mistake.
        """
        name = self._values.get("name")
        if name is None:
            if required:
                self.missing("name")
            return None
        if problem := name_problem(name):
            self._issue(problem, "name")
        return name

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of `choices`, or None where it is missing or none of them."""
        value = self._values.get(name)
        if value is None or value in choices:
            return value
        allowed = ", ".join(repr(choice) for choice in choices)
        self._issue(f"{name!r} is {quote(value)}; allowed are {allowed}", name)
        return None

    def flag(self, name: str, default: bool) -> bool:
        """`true` or `false`."""
        value = self.choice(name, ("true", "false"))
        return default if value is None else value == "true"

    def length(self) -> int:
        """A number of tokens, at least one; 1 where it is missing or wrong."""
        length = self.length_or_none()
        if length is None:
            self.missing("length")
        return length or 1

    def length_or_none(self) -> int | None:
        """As `length`, for one that need not be there."""
        value = self._values.get("length")
        if value is None:
            return None
        if not _NUMBER.fullmatch(value) or int(value) == 0:
            self._issue(f"'length' is {quote(value)}; it must be a number of tokens, at least 1", "length")
            return 1
        return int(value)

    def space(self, inherited: str) -> str:
        """The kind of white space in the element."""
        return self.choice("space", SPACE_KINDS) or inherited

    def separator(self, inherited: str | None) -> str | None:
        """What becomes of white space beside modules in the element; None where no one says."""
        return self.choice("separator", SEPARATOR_KINDS) or inherited

    def missing(self, name: str) -> None:
        """Adds the issue that a required attribute is missing."""
        self._issues.add(self._element.place.issue(f"attribute {name!r} is missing"))

    def _issue(self, what: str, attribute: str) -> None:
        written = self._written.get(attribute, attribute)
        self._issues.add(self._element.place.at(written).issue(what))
