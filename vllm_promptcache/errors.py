"""The one error type of everything that reads PML (PML page, "Documents")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rapidfuzz.fuzz import ratio
from rapidfuzz.process import extractOne

BAD_DOCUMENT = 400
UNKNOWN_SCHEMA = 404
TOO_LARGE = 413

# A hostile document can hold a million mistakes; nobody reads more than these.
MAX_ISSUES = 100
# Names that are longer have no nearest one, and not all of very many are compared: a document has up to
# `MAX_ISSUES` unknown names, each a comparison with all known ones.
_MAX_QUOTED_CHARACTERS = 64
_MAX_NAMES_COMPARED = 16_384
# Of 100: the characters that both have in order, twice, to all that they have.
_ALIKE = 60


@dataclass(frozen=True)
class PMLIssue:
    """One mistake: `where` is a file or a field of a request; `line` and `column` (in characters) count
    from 1; `path` names the enclosing elements, outermost first."""

    where: str
    line: int
    column: int
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}:{self.column}: {self.path}: {self.what}"


class PMLError(ValueError):
    """A document that is refused, with every mistake that was found, in document order.

    `status` is the HTTP status that fits: 400 (bad document), 404 (unknown schema), 413 (too large).
    `str()` is one line an issue, `where:line:column: path: what`.
    """

    def __init__(self, issues: Iterable[PMLIssue], status: int = BAD_DOCUMENT) -> None:
        self.issues = tuple(sorted(issues, key=lambda issue: (issue.where, issue.line, issue.column)))
        self.status = status
        super().__init__("\n".join(str(issue) for issue in self.issues))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.issues, self.status)


class ChatTemplateError(ValueError):
    """The model has no chat template, or its template refuses what is asked of it.

    Where a document asks for it, this becomes an issue of a `PMLError`.
    """


class IssueList:
    """Collects issues, so that a document with three mistakes reports three."""

    def __init__(self) -> None:
        self._issues: list[PMLIssue] = []

    def __len__(self) -> int:
        return len(self._issues)

    def add(self, issue: PMLIssue) -> None:
        """Adds an issue. Raises PMLError with all so far once there are `MAX_ISSUES`."""
        self._issues.append(issue)
        if len(self._issues) >= MAX_ISSUES:
            self.raise_if_any()

    def extend(self, issues: Iterable[PMLIssue]) -> None:
        """Adds several issues."""
        for issue in issues:
            self.add(issue)

    def raise_if_any(self) -> None:
        """Raises one `PMLError` with all issues, if there are any."""
        if self._issues:
            raise PMLError(self._issues)


def quote(name: str) -> str:
    """A name as it stands in messages: quoted, shortened if long."""
    if len(name) > _MAX_QUOTED_CHARACTERS:
        return f"{name[:_MAX_QUOTED_CHARACTERS]!r}…"
    return repr(name)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest known one if one is near."""
    message = f"unknown {kind} {quote(name)}"
    near = nearest(name, known)
    return f"{message}; did you mean {quote(near)}?" if near is not None else message


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like a name, whatever their case, if one is alike; the first of equals."""
    if len(name) > _MAX_QUOTED_CHARACTERS:
        return None
    names = list(islice(known, _MAX_NAMES_COMPARED))
    found = extractOne(name, names, scorer=ratio, processor=str.casefold, score_cutoff=_ALIKE)
    return None if found is None else names[found[2]]
