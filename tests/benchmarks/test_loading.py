"""`loading`: the result's tables and figures; and that its figures are of what they say."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.report import render
from benchmarks.speed.loading_report import WAYS, figures, loading_of, panels, restart_of, said_of, tables

MS = {"full": 5600.0, "prefix": 70.0, "placed": 70.0, "records": 100.0, "files": 300.0, "cold": 3070.0}


def cell(times: dict[str, float] = MS) -> dict[str, Any]:
    samples = {way: [{"place": [n, 0], "ttft_ms": ms + n} for n in range(2)] for way, ms in times.items()}
    said = {"records": [[8, 0], [8, 0]], "files": [[8, 0], [7, 1]]}
    return {"tokens": 4000, "new_tokens": 16, "samples": samples, "said": said}


def restart() -> dict[str, Any]:
    restarted = [{"place": [n, 0], "seconds": 4.0 + n} for n in range(1, 4)]
    samples = {"encoded": [{"place": [0, 0], "seconds": 40.0}], "restarted": restarted}
    return {"members": 200, "tokens": 40_000, "samples": samples}


def test_loading_is_what_it_adds_over_what_encoding_adds() -> None:
    found = loading_of(cell())
    assert found is not None and found.median == 30 / 3000
    assert loading_of(cell({"full": 1.0, "records": 2.0})) is None
    assert restart_of(restart()).median == 0.15


def test_tables_and_figures() -> None:
    result = {"text": {"source": "here", "tokens": 9}, "cells": {"4000": cell(), "restart": restart()}}
    ratios, times, said, restarted = tables(result)
    assert ratios.rows[0][0] == "4000" and ratios.rows[0][-1].startswith("0.010")
    assert times.columns == ("tokens", *WAYS) and times.rows[0][1].startswith("5600.5")
    assert said.rows[0] == ("4000", "–", "–", "–", "8, 0", "7, 1 or 8, 0", "–")
    assert restarted.rows[0][:3] == ("200", "40000", "40.00")
    reached = {figure.what: figure.is_reached for figure in figures(result)}
    assert list(reached.values()) == [True, True, True, True, False]
    assert "records / prefix 1.4" in said_of(cell()) and "0.150" in said_of(restart())
    assert [len(panel.series) for panel in panels(result)] == [1]


def test_a_run_may_have_restarts_only() -> None:
    result = {"text": {"source": "here", "tokens": 9}, "cells": {"restart": restart()}}
    assert [table.title for table in tables(result)] == ["A restart"]
    assert len(figures(result)) == 1 and panels(result) == []


def test_a_result_without_all_ways_is_rendered_too() -> None:
    machine = {"versions": {}, "started": "", "commit": "", "processor": "", "cores": 2, "memory_gib": 1}
    machine["load_average_at_start"] = 0
    settings = {
        "model": "m",
        "dtype": "",
        "compiled": False,
        "max_model_len": 1,
        "block_size": 1,
        "quick": True,
    }
    cells = {"4000": cell({"full": 9.0, "files": 1.0})}
    result = {"benchmark": "loading", "machine": machine, "settings": settings, "servers": [], "cells": cells}
    result["text"] = {"source": "here", "tokens": 9}
    page = render(result, tables(result), figures(result), "")
    assert "files / full: 4000 tokens in 8 members, a new order" in page and "records / prefix:" not in page
