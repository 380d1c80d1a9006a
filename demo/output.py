"""What the demo says: plain lines, the same in a terminal and in a log."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Iterable

_started = time.monotonic()
INDENT = "  "


def width() -> int:
    """Columns to fill: the terminal's, at most 100."""
    return min(shutil.get_terminal_size((80, 24)).columns, 100)


def heading(text: str) -> None:
    """Begins a part of the demo."""
    line = f"-- {text} "
    say(f"\n{line}{'-' * max(width() - len(line), 2)}")


def say(text: str = "") -> None:
    """One line, or several, at once also in a pipe."""
    print(text, flush=True)


def note(text: str) -> None:
    """A paragraph, wrapped and indented."""
    say(textwrap.fill(text, width(), initial_indent=INDENT, subsequent_indent=INDENT))


def step(text: str) -> None:
    """Progress, with the seconds since the demo began."""
    say(f"{INDENT}{time.monotonic() - _started:4.0f} s  {text}")


def stream(parts: Iterable[str], indent: str = INDENT) -> str:
    """Writes text as it comes, wrapped at spaces; returns all of it."""
    text, column, word = "", 0, ""
    for part in parts:
        for character in part:
            if character not in " \n":
                word += character
                continue
            column = _put(word, column, indent)
            word = ""
        text += part
    _put(word, column, indent)
    say()
    return text


def _put(word: str, column: int, indent: str) -> int:
    """Writes a word where `column` characters stand in the line; returns how many stand there then."""
    if not word:
        return column
    if column and column + 1 + len(word) > width():
        sys.stdout.write("\n")
        column = 0
    lead = " " if column else indent
    sys.stdout.write(lead + word)
    sys.stdout.flush()
    return column + len(lead) + len(word)
