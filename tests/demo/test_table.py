"""The demo's table, legend and numbers."""

import pytest

from demo.table import render_legend, render_table, seconds, times


def test_a_table_lines_up() -> None:
    table = render_table(("what", "two\nlines", "n"), [("a", "1", "22222"), ("long name", "333", "4")])
    assert table.split("\n") == [
        "             two",
        "what       lines      n",
        "---------  -----  -----",
        "a              1  22222",
        "long name    333      4",
    ]


def test_a_legend_wraps_below_its_meanings() -> None:
    legend = render_legend([("a", "some words that wrap"), ("bcd", "short")], columns=16)
    assert legend.split("\n") == ["a    some words", "     that wrap", "bcd  short"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0851, "85 ms"), (0.9994, "999 ms"), (0.9999, "1.00 s"), (1.236, "1.24 s"), (12.36, "12.4 s")],
)
def test_seconds(value: float, shown: str) -> None:
    assert seconds(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.94, "0.9x"), (5.23, "5.2x"), (9.97, "10x"), (36.4, "36x")])
def test_times(value: float, shown: str) -> None:
    assert times(value) == shown
