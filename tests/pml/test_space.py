"""White space of text runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_promptcache.pml.space import (
    COMPACT,
    NORMALIZE,
    PRESERVE,
    SPACE_KINDS,
    join_parts,
    released,
)
from vllm_promptcache.pml.space import apply_space as apply_to_joined

TEXT, CDATA = False, True


def apply_space(parts: list[tuple[str, bool]], kind: str) -> str:
    return released(apply_to_joined(join_parts(parts), kind))


PARTS = st.lists(st.tuples(st.text("a \n\t", max_size=4), st.booleans()), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "compact", "normalize"),
    [
        ("word", "word", "word"),
        ("  word", " word", " word"),
        ("word\n\n", "word ", "word "),
        ("\n one \n two\t\t", " one \n two ", " one two "),
        (" \n ", "", " "),
        ("\u00a0word\u00a0", "\u00a0word\u00a0", "\u00a0word\u00a0"),
        ("", "", ""),
    ],
)
def test_runs_of_plain_text(text: str, compact: str, normalize: str) -> None:
    assert apply_space([(text, TEXT)], COMPACT) == compact
    assert apply_space([(text, TEXT)], NORMALIZE) == normalize
    assert apply_space([(text, TEXT)], PRESERVE) == text


@pytest.mark.parametrize(
    ("parts", "compact", "normalize"),
    [
        ([("  x  ", CDATA)], "  x  ", "  x  "),
        ([("  ", CDATA)], "  ", "  "),
        ([("\n  ", TEXT), ("  x\n", CDATA), ("\n  ", TEXT)], "   x\n ", "   x\n "),
        ([("a  ", TEXT), ("  b", CDATA), ("  c  d ", TEXT)], "a    b  c  d ", "a   b c d "),
    ],
)
def test_cdata_is_kept_as_it_is(parts: list[tuple[str, bool]], compact: str, normalize: str) -> None:
    assert apply_space(parts, COMPACT) == compact
    assert apply_space(parts, NORMALIZE) == normalize


@given(PARTS, st.sampled_from(SPACE_KINDS))
def test_it_does_not_matter_how_text_is_cut_into_parts(parts: list[tuple[str, bool]], kind: str) -> None:
    parts = [(text, is_cdata) for text, is_cdata in parts if text]
    cut = [(letter, is_cdata) for text, is_cdata in parts for letter in text]
    assert apply_space(cut, kind) == apply_space(parts, kind)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("one line", "one line"),
        (" spaces  stay ", " spaces  stay "),
        ("\n", ""),
        ("\n  ", ""),
        (" \n\n ", ""),
        ("\n\n\n", "\n"),
        ("\nblock\n", "block"),
        ("\n  block\n  of two\n", "block\nof two"),
        ("\n  def f():\n    pass\n\n  f()\n  ", "def f():\n  pass\n\nf()"),
        ("\n\tone\n  two", "\tone\n  two"),
        ("Steps:\n  1. go\n  2. stop", "Steps:\n  1. go\n  2. stop"),
        ("Steps:\n  1. go\n", "Steps:\n  1. go"),
        ("a\n\n", "a\n"),
    ],
)
def test_dedent_takes_what_lays_markup_out(content: str, text: str) -> None:
    assert apply_space([(content, TEXT)], "dedent") == text
    assert apply_space([(content, CDATA)], "dedent") == content


@given(PARTS, st.sampled_from(SPACE_KINDS))
def test_only_white_space_changes(parts: list[tuple[str, bool]], kind: str) -> None:
    before = "".join(text for text, _ in parts)
    assert apply_space(parts, kind).split() == before.split()


@given(st.text("a \n\t"))
def test_compact_is_stable_and_never_leaves_a_long_run_at_an_end(text: str) -> None:
    once = apply_space([(text, TEXT)], COMPACT)
    assert apply_space([(once, TEXT)], COMPACT) == once
    assert once.strip(" ") == once.strip()
