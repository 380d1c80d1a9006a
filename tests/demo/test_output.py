"""What the demo says looks the same in a terminal and in a pipe."""

import pytest

from demo import output


def test_a_stream_is_wrapped_and_returned_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    parts = ["One two", " thr", "ee four ", "five\nsix", "."]
    assert output.stream(parts, "  ") == "".join(parts)
    assert capsys.readouterr().out == "  One two three four\n  five six.\n"


def test_an_empty_stream_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.stream([]) == ""
    assert capsys.readouterr().out == "\n"


def test_lines_are_plain_and_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    output.heading("Part")
    output.note("word " * 20)
    output.step("done")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "-- Part " + "-" * 32
    assert all(len(line) <= 40 for line in lines)
    assert lines[-1].endswith(" s  done")


def test_a_terminal_may_be_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert output.width() == 100
