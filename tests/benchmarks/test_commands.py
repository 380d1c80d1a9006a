"""Commands of benchmarks that documents and results show: each is one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.harness import cli

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PAGES += [f"benchmarks/results/{path.name}" for path in (ROOT / "benchmarks/results").glob("*.md")]
COMMAND = re.compile(r"(?:python -m benchmarks|make bench ARGS=\")(?P<arguments>[^`|\"#\n\\]*)")


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for match in COMMAND.finditer((ROOT / page).read_text(encoding="utf-8")):
            yield page, match["arguments"].strip()


FOUND = sorted(set(commands()))


@pytest.mark.parametrize(("page", "arguments"), FOUND)
def test_a_command_can_be_given(page: str, arguments: str) -> None:
    if arguments.startswith("."):  # python -m benchmarks.speed.attention
        module = "benchmarks" + arguments.split()[0].rstrip(",;")
        assert find_spec(module) is not None
        return
    given = [word for word in shlex.split(arguments.partition(")")[0]) if word not in ("--help", "-->")]
    names = [word for word in given if word in {**cli.BENCHMARKS, **cli.OTHERS, "all": "", "report": ""}]
    if not given:
        return
    assert len(names) >= 1, f"{page}: {arguments}"
    if names[0] in cli.BENCHMARKS:
        cli._parser(names[0]).parse_args(given)


def test_there_are_commands() -> None:
    assert len(FOUND) > 25
