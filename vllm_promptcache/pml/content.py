"""What stands in an element: its elements, and the texts before, between and behind them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_promptcache.pml.reader import Characters, Element
from vllm_promptcache.pml.source import Place
from vllm_promptcache.pml.space import (
    BLOCK,
    COMMENT,
    DEDENT,
    INLINE,
    SILENT,
    apply_space,
    dedent,
    join_parts,
)

# Elements that stand in text as a word does, and those that leave no trace of a line of their own.
_MARKS = {"parameter": INLINE, "param": INLINE, "scaffold": SILENT}
_ANY_MARK = re.compile(f"[{BLOCK}{INLINE}]")


@dataclass(slots=True)
class Content:
    """`texts[i]` stands before `elements[i]`, the last one behind all; empty where nothing stands.

    White space is treated; texts are still to be `released`. `places` are the texts'. `silent` are
    elements that hold nothing and that no text stops at.
    """

    elements: list[Element]
    texts: list[str]
    places: list[Place]
    silent: list[Element]


def read_content(element: Element, kind: str) -> Content:
    """The content of an element with `kind` of white space applied to its text."""
    elements: list[Element] = []
    silent: list[Element] = []
    runs: list[list[str]] = [[]]
    places = [element.place]
    for child in element.children:
        if isinstance(child, Characters):
            if not runs[-1]:
                places[-1] = child.place
            runs[-1].append(_text(child, kind))
        elif _MARKS.get(child.tag) == SILENT:
            silent.append(child)
            runs[-1].append(SILENT)
        else:
            elements.append(child)
            runs.append([])
            places.append(child.place)
    return Content(elements, _texts(elements, runs, kind), places, silent)


def _text(characters: Characters, kind: str) -> str:
    if kind != DEDENT or not characters.comments:
        return join_parts(characters.parts)
    parts = list(characters.parts)
    for index in reversed(characters.comments):
        parts.insert(index, (COMMENT, False))
    return join_parts(parts)


def _texts(elements: Sequence[Element], runs: Sequence[Sequence[str]], kind: str) -> list[str]:
    if kind != DEDENT:
        # Text on either side of a scaffold are two runs.
        return ["".join([apply_space(part, kind) for part in run if part != SILENT]) for run in runs]
    marks = [_MARKS.get(element.tag, BLOCK) for element in elements]
    whole = "".join(["".join(run) + mark for run, mark in zip(runs, [*marks, ""], strict=True)])
    return [text.replace(SILENT, "") for text in _ANY_MARK.split(dedent(whole))]
