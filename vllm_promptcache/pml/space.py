"""White space of text: what a `space` attribute says (PML page, "Text and white space")."""

from __future__ import annotations

import re
from collections.abc import Sequence

DEDENT, COMPACT, NORMALIZE, PRESERVE = "dedent", "compact", "normalize", "preserve"
SPACE_KINDS = (DEDENT, COMPACT, NORMALIZE, PRESERVE)
DEFAULT_SPACE = DEDENT

# XML's white space only: a no-break space is there on purpose.
WHITE = " \t\r\n"
_RUN = re.compile(r"[ \t\r\n]+")

# CDATA and character references are kept as they are. While white space is treated, theirs is written with
# characters that no document can hold, as are the elements and comments among an element's text.
_TO_KEPT = str.maketrans({" ": "\x01", "\t": "\x02", "\n": "\x03", "\r": "\x04"})
_FROM_KEPT = str.maketrans({"\x01": " ", "\x02": "\t", "\x03": "\n", "\x04": "\r"})
BLOCK, INLINE, SILENT, COMMENT = "\x05", "\x06", "\x07", "\x08"
_LINE_OF_COMMENTS = re.compile(f"\n[ \t]*[{SILENT}{COMMENT}][ \t{SILENT}{COMMENT}]*(?=\n|\\Z)")


def is_white(text: str) -> bool:
    """Whether text is nothing but XML's white space."""
    return not text.strip(WHITE)


def kept(text: str) -> str:
    """Text whose white space nothing changes, until `released` writes it as it was."""
    return text.translate(_TO_KEPT)


def released(text: str) -> str:
    """Text as it is read, once its white space has been treated."""
    return text.translate(_FROM_KEPT)


def join_parts(parts: Sequence[tuple[str, bool]]) -> str:
    """A run whose `parts` are (text, is it to be kept as it is), for the functions of this module."""
    if len(parts) == 1 and not parts[0][1]:
        return parts[0][0]
    return "".join([kept(text) if is_kept else text for text, is_kept in parts])


def apply_space(text: str, kind: str) -> str:
    """The text of a run with `kind` applied: any of `SPACE_KINDS`, of which `dedent` takes the whole
    content of an element."""
    if kind == DEDENT:
        return dedent(text)
    if kind == COMPACT:
        return _compact(text)
    return _RUN.sub(" ", text) if kind == NORMALIZE else text


def dedent(content: str) -> str:
    """An element's content without what only lays the markup out, its comments gone.

    That is a line break right behind the start tag, one before the end tag with what indents that, lines
    that hold comments or scaffolds alone, and the indentation that all lines have in common: those
    from the first on where it stands on a line of its own, and those after it where any begins with an
    element. Text that begins right behind its tag is no layout: its lines stay as they are.
    """
    content = _LINE_OF_COMMENTS.sub("", content).replace(COMMENT, "")
    start = content.lstrip(" \t")
    is_block = start.startswith("\n")
    if is_block:
        content = start[1:]
    end = content.rstrip(" \t")
    if end.endswith("\n"):
        content = end[:-1]
    elif is_block and not end:
        return ""
    if "\n" not in content and not is_block:
        return content
    lines = content.split("\n")
    first = 0 if is_block else 1
    if is_block or any(line.lstrip(" \t").startswith(BLOCK) for line in lines[1:]):
        lines[first:] = _without_common_indentation(lines[first:])
    return "\n".join(lines)


def _without_common_indentation(lines: Sequence[str]) -> list[str]:
    indents = [line[: len(line) - len(rest)] for line in lines if (rest := line.lstrip(" \t"))]
    shortest, longest = (min(indents), max(indents)) if indents else ("", "")
    number = 0
    while number < len(shortest) and shortest[number] == longest[number]:
        number += 1
    common = shortest[:number]
    # A blank line may have less.
    return [line[number:] if line.startswith(common) else line.lstrip(" \t") for line in lines]


def _compact(text: str) -> str:
    core = text.strip(WHITE)
    if not core:
        return ""
    return (" " if text[0] in WHITE else "") + core + (" " if text[-1] in WHITE else "")
