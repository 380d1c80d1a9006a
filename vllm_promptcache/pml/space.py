"""White space of text runs (PML page, "Text")."""

from __future__ import annotations

import re
from collections.abc import Sequence

COMPACT, NORMALIZE, PRESERVE = "compact", "normalize", "preserve"
SPACE_KINDS = (COMPACT, NORMALIZE, PRESERVE)

# XML's white space only: a no-break space is there on purpose.
_WHITE = " \t\r\n"
_RUN = re.compile(r"[ \t\r\n]+")


def is_white(text: str) -> bool:
    """Whether text is nothing but XML's white space."""
    return not text.strip(_WHITE)


def apply_space(parts: Sequence[tuple[str, bool]], kind: str) -> str:
    """The text of a run whose `parts` are (text, is it CDATA), with `kind` of `SPACE_KINDS` applied.

    CDATA is kept as it is: also at the ends, and also if it is only white space.
    """
    if kind == PRESERVE:
        return "".join([text for text, _ in parts])
    if not any(is_cdata for _, is_cdata in parts):
        text = "".join([text for text, _ in parts])
        return _compact(text) if kind == COMPACT else _RUN.sub(" ", text)
    merged = _merge(parts)
    if kind == NORMALIZE:
        return "".join([text if is_cdata else _RUN.sub(" ", text) for text, is_cdata in merged])
    texts = [text for text, _ in merged]
    if not merged[0][1]:
        texts[0] = _compact_start(texts[0])
    if not merged[-1][1]:
        texts[-1] = _compact_end(texts[-1])
    return "".join(texts)


def _compact(text: str) -> str:
    core = text.strip(_WHITE)
    if not core:
        return ""
    return (" " if text[0] in _WHITE else "") + core + (" " if text[-1] in _WHITE else "")


def _compact_start(text: str) -> str:
    core = text.lstrip(_WHITE)
    return core if core == text else " " + core


def _compact_end(text: str) -> str:
    core = text.rstrip(_WHITE)
    return core if core == text else core + " "


def _merge(parts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Joins neighbouring parts of one kind: the reader hands over text in arbitrary pieces."""
    merged: list[tuple[list[str], bool]] = []
    for text, is_cdata in parts:
        if merged and merged[-1][1] == is_cdata:
            merged[-1][0].append(text)
        else:
            merged.append(([text], is_cdata))
    return [("".join(texts), is_cdata) for texts, is_cdata in merged]
