"""White space beside modules: whether it goes with a module that a prompt leaves out (PML page, "Text")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_promptcache.pml.space import WHITE, is_white

LINE, BEFORE, AFTER, STAY = "line", "before", "after", "stay"
SEPARATOR_KINDS = (LINE, BEFORE, AFTER, STAY)


@dataclass(slots=True)
class Separators:
    """`before[i]` and `after[i]` are what goes with the i-th element; `texts` are what stays around it."""

    texts: list[str]
    before: list[str]
    after: list[str]


def take_separators(texts: Sequence[str], are_modules: Sequence[bool], kind: str) -> Separators:
    """Gives white space in an element's texts to the modules beside it.

    `texts[i]` stands before the i-th element, the last one behind all; `are_modules` tells modules and
    unions from parameters and roles. With `before` and `after`, white space there goes with a module.
    With `line`, it does so for a module on lines of its own: what stands before it, or, where the element
    has no text before it, what stands after it.
    """
    taken = Separators(list(texts), [""] * len(are_modules), [""] * len(are_modules))
    if kind == STAY:
        return taken
    has_text_before = False
    for i, is_module in enumerate(are_modules):
        has_text_before = has_text_before or not is_white(texts[i])
        if not is_module:
            has_text_before = True
        elif kind != LINE or _is_on_lines_of_its_own(texts, i):
            if kind == BEFORE or (kind == LINE and has_text_before):
                taken.before[i] = _before(texts, i)
                taken.texts[i] = taken.texts[i].removesuffix(taken.before[i])
            else:
                taken.after[i] = _after(texts, i)
                taken.texts[i + 1] = taken.texts[i + 1].removeprefix(taken.after[i])
    return taken


def _is_on_lines_of_its_own(texts: Sequence[str], i: int) -> bool:
    begins = (i == 0 and not texts[0]) or "\n" in _white_end(texts[i])
    ends = (i == len(texts) - 2 and not texts[-1]) or "\n" in _white_start(texts[i + 1])
    return begins and ends


def _before(texts: Sequence[str], i: int) -> str:
    """The white space before an element; of more, as much as stands between it and the next one."""
    white, following = _white_end(texts[i]), texts[i + 1]
    is_between = i > 0 and is_white(texts[i])
    if not is_between and following and is_white(following) and white.endswith(following):
        return following
    return white


def _after(texts: Sequence[str], i: int) -> str:
    """The white space after an element; of more, as much as stands between it and the one before."""
    white, previous = _white_start(texts[i + 1]), texts[i]
    is_between = i + 2 < len(texts) and is_white(texts[i + 1])
    if not is_between and previous and is_white(previous) and white.startswith(previous):
        return previous
    return white


def _white_start(text: str) -> str:
    return text[: len(text) - len(text.lstrip(WHITE))]


def _white_end(text: str) -> str:
    return text[len(text.rstrip(WHITE)) :]
