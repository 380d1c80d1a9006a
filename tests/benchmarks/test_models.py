"""The table of models in docs/models.md is what `python -m benchmarks models` writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.models import cli
from tests.families import FAMILIES
from tests.family import WAYS

COLUMNS = (*WAYS, "control")
ROW = re.compile(r"^\| (?P<users>.*?) \| `(?P<name>\S+)` \| (?P<verdict>.*?) \| (?P<numbers>.*) \|$", re.M)


def rows() -> dict[str, re.Match[str]]:
    page = cli.PAGE.read_text(encoding="utf-8")
    table = page[page.index(cli.BEGIN) : page.index(cli.END)]
    return {row["name"]: row for row in ROW.finditer(table)}


def test_every_family_has_a_row() -> None:
    assert list(rows()) == list(FAMILIES)
    assert len(rows()) > 45


def test_rows_say_what_their_numbers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written again from its own numbers the page is the same."""
    results = {
        name: {way: float(n) for way, n in zip(COLUMNS, row["numbers"].split(" | "), strict=True)}
        for name, row in rows().items()
    }
    page = tmp_path / "models.md"
    page.write_text(cli.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(cli, "PAGE", page)
    cli.write_table(results)
    assert (
        page.read_text(encoding="utf-8").splitlines()
        == (cli.ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    )
    assert {row["verdict"] for row in rows().values()} <= {"exact", "exact up to vLLM"}
