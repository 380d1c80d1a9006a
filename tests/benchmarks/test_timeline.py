"""The timeline: marks to stages, and the marks themselves in the installed vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness.run import Run
from benchmarks.harness.settings import Settings
from benchmarks.speed import marks, timeline
from benchmarks.speed.timeline import marked_servers, read_marks, stages_of

MS = 1_000_000
# Two layers' attention of 3 and 4 ms inside a forward pass of 20.
MARKS = [
    (2, marks.SENT, "begin"),
    (3, marks.ADDED, "begin"),
    (4, marks.ADDED, "end"),
    (5, marks.SCHEDULED, "begin"),
    (6, marks.STEP, "begin"),
    (10, marks.FORWARD, "begin"),
    (12, marks.ATTENTION, "begin"),
    (15, marks.ATTENTION, "end"),
    (20, marks.ATTENTION, "begin"),
    (24, marks.ATTENTION, "end"),
    (30, marks.FORWARD, "end"),
    (31, marks.STEP, "end"),
    (33, marks.SAMPLED, "end"),
    (34, marks.SCHEDULED, "begin"),
]


def lines(at_ms: int, without: str = "") -> str:
    return "".join(f"{(at_ms + ms) * MS} {name} {edge}\n" for ms, name, edge in MARKS if name != without)


def test_stages_of_one_request_among_others(tmp_path: Path) -> None:
    """Marks of two processes, of the request before and of the one after, are told apart by time."""
    (tmp_path / "1.marks").write_text(lines(1000) + lines(3000))
    (tmp_path / "2.marks").write_text(lines(2000))
    stages = stages_of(read_marks(tmp_path), 2000 * MS, 2036 * MS)
    assert list(stages.values()) == [2, 1, 2, 1, 4, 7, 13, 3, 3]
    assert list(stages) == list(timeline.SHOWN)


@pytest.mark.parametrize("name", [marks.SENT, marks.FORWARD, marks.SAMPLED])
def test_a_stage_without_its_mark_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "1.marks").write_text(lines(1000, without=name))
    with pytest.raises(ValueError, match=name):
        stages_of(read_marks(tmp_path), 1000 * MS, 1036 * MS)


def test_servers_load_the_marks_as_a_plugin() -> None:
    """In a process of its own: vLLM finds the plugin, and its methods leave marks."""
    code = (
        "from vllm.plugins import load_general_plugins\n"
        "load_general_plugins()\n"
        "import benchmark_marks, importlib\n"
        "for name, module in benchmark_marks.MARKED.items():\n"
        "    owner, method = name.split('.')\n"
        "    assert getattr(getattr(importlib.import_module(module), owner), method).marked, name\n"
        "from vllm.v1.engine.core import EngineCore\n"
        "try: EngineCore.add_request(None, None)\n"
        "except AttributeError: pass\n"
    )
    with marked_servers() as folder:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=240)
        assert [(m.name, m.edge) for m in read_marks(folder)] == [
            (marks.ADDED, "begin"),
            (marks.ADDED, "end"),
        ]
    assert marks.FOLDER not in os.environ


def test_tables_and_pictures(tmp_path: Path) -> None:
    run = Run("timeline", Settings(model="/somewhere/a-model"), {}, tmp_path / "result.json", resume=False)
    sample = dict.fromkeys(timeline.SHOWN, 2.0)
    cell = {"cached_tokens": 4000, "samples": {"alone": [sample], "warm": [sample, sample]}}
    run.add("4000:16:8", cell)
    (table,) = timeline.tables(run.result)
    assert len(table.rows) == len(timeline.SHOWN) + 1
    assert table.rows[-1][1] == "18.00 (18.00 to 18.00)"
    (panel,) = timeline.panels(run.result)
    assert panel.stacked and len(panel.series) == len(timeline.SHOWN)
