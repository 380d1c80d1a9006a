"""Results: saved, resumed, rendered."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import cli
from benchmarks.harness.plot import Panel, Series, save_plot
from benchmarks.harness.report import Figure, Table, figure_table, render
from benchmarks.harness.run import Run, RunError
from benchmarks.harness.settings import Settings
from benchmarks.harness.spread import Spread
from benchmarks.speed import conversation, decode, memory, overhead, tax, throughput, ttft, versions

SETTINGS = Settings(model="/somewhere/a-model")


def begin(path: Path, settings: Settings = SETTINGS, *, resume: bool = True) -> Run:
    return Run("ttft", settings, {}, path, resume=resume)


def test_a_run_is_resumed_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    first = begin(path)
    assert first.wants("a")
    first.add("a", {"samples": [1]})
    again = begin(path)
    assert again.has("a") and not again.wants("a") and again.wants("b")
    assert not begin(path, resume=False).has("a")


def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    begin(path).add("a", {})
    with pytest.raises(RunError, match="other settings"):
        begin(path, Settings(model="/somewhere/another"))
    assert begin(path, Settings(model="/somewhere/a-model", minutes=5)).has("a")


def test_a_run_with_other_options_is_not_resumed_but_may_have_other_cells(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    def run(**options: Any) -> Run:
        return Run("overhead", SETTINGS, options, path, resume=True)

    run(one_layer=True, grid="a").add("a", {})
    assert run(one_layer=True, grid="a,b").has("a")
    with pytest.raises(RunError, match="other options"):
        run(one_layer=False, grid="a")


def test_a_report_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line without where its result went, and how many samples there are."""

    def measure(run: Run, args: Any) -> None:
        run.result.update(RESULTS[ttft])
        run.save()

    monkeypatch.setattr(ttft, "run", measure)
    out = tmp_path / "x.json"
    given = ["--model", str(tmp_path), "ttft", "--grid", "4000:24:8", "--out", str(out), "--resume"]
    monkeypatch.setattr("benchmarks.harness.settings.read_settings", lambda args: SETTINGS)
    assert cli.main(given) == 0
    text = out.with_suffix(".md").read_text()
    assert f"`python -m benchmarks --model {tmp_path} ttft --grid 4000:24:8`" in text
    assert "Samples: full 2, prefix 2, warm 2, cold 2." in text


def test_resuming_needs_a_result_to_continue(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ttft", "--resume"]) == 2
    assert "--out" in capsys.readouterr().err


def test_all_benchmarks_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cli, "_run", lambda name, args, given: asked.append((name, args.out, args.quick)))
    assert cli.main(["all", "--quick", "--out", str(tmp_path)]) == 0
    assert asked == [(name, tmp_path / f"{name}.json", True) for name in cli.BENCHMARKS]


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    run = begin(tmp_path / "result.json", Settings(model="m", minutes=0.0))
    assert not run.wants("a")
    assert run.result["skipped"] == ["a"]


@pytest.mark.parametrize(
    ("value", "at_most", "reached"), [(0.99, True, True), (1.01, True, False), (1.01, False, True)]
)
def test_a_figure_is_reached_on_its_side_of_the_target(value: float, at_most: bool, reached: bool) -> None:
    figure = Figure("what", value, 1.0, at_most)
    assert figure.is_reached is reached
    assert figure_table([figure]).rows[0][-1] == ("yes" if reached else "**no**")
    assert figure.to_json()["reached"] is reached


def test_tables_are_aligned_markdown() -> None:
    table = Table("Times", ("way", "ms"), (("full", "100.0"), ("warm", "1.0")), "A note.")
    assert table.to_markdown() == (
        "### Times\n\n| way  | ms    |\n|------|-------|\n| full | 100.0 |\n| warm | 1.0   |\n\nA note."
    )


def test_plots_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one, two = Spread(1, 0.9, 1.2, 3), Spread(2, 1.5, 2.5, 3)
    lines = (Series("a", ((1024, one), (2048, two))), Series("b", ((1024, two),)))
    bars = (Series("a", (("x", one), ("y", two))), Series("b", (("y", two),)))
    panels = [
        Panel("lines", "x", "y", lines, log_x=True, log_y=True, line_at=1.0),
        Panel("bars", "x", "y", bars, bars=True),
        Panel("stacked", "x", "y", bars, stacked=True),
    ]
    save_plot(panels, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size and (tmp_path / "plot.png").stat().st_size


# -- one small result of each benchmark ----------------------------------------------------------------


def samples(value: str, *numbers: float) -> list[dict[str, Any]]:
    return [{"place": [i, 0], value: number} for i, number in enumerate(numbers)]


def ttft_cell(cached: int) -> dict[str, Any]:
    times = {
        "full": (4000.0, 4100.0),
        "prefix": (100.0, 110.0),
        "warm": (95.0, 99.0),
        "cold": (4200.0, 4100.0),
    }
    return {
        "cached_tokens": cached,
        "new_tokens": 24,
        "module_tokens": [cached],
        "reused_tokens": {way: [cached] for way in times},
        "encoded_modules": {way: [0] for way in times},
        "samples": {way: samples("ttft_ms", *numbers) for way, numbers in times.items()},
    }


def memory_cell(way: str, peak: int, **more: int) -> dict[str, Any]:
    return {
        "case": {"name": memory.CASES[0].name},
        "way": way,
        "requests": 100,
        "peak_blocks": peak,
        "most_in_flight": 100,
        "in_flight_before_first_waits": more.get("blocks", 0) // 16 or None,
        "block_size": 128,
        **more,
    }


def overhead_cell(cached: int) -> dict[str, Any]:
    stages = dict.fromkeys((*overhead.STAGES, *overhead.COMPARED), 10.0)
    stages["sending"] = cached / 100
    profile = {"profile_us": {"Scheduler.add_request": 5.0}} if cached > 1000 else {}
    return {
        "cached_tokens": cached,
        "modules": 8,
        "layout_us": 100.0,
        "samples_us": [stages, stages],
        "methods_us": {},
        **profile,
    }


def throughput_cell(load: str, *ways: str) -> dict[str, Any]:
    burst = {"requests_per_s": 2.0, "ttfts_ms": [1.0, 2.0]}
    return {
        "load": load,
        "concurrency": 8,
        "samples": {way: [{"place": [0, 0], **burst}, {"place": [1, 0], **burst}] for way in ways},
    }


def conversation_sample(way: str) -> list[dict[str, Any]]:
    return [{"place": [0, 0], "ttft_ms": 50.0, "reused_tokens": 2000 if way == "composed-new" else 2800}]


RESULTS: dict[Any, dict[str, Any]] = {
    ttft: {
        "text": {"source": "here", "tokens": 1000},
        "cells": {
            "4000:24:8": ttft_cell(4000),
            "4000:24:8:bs32": ttft_cell(4000),
            "8000:16:8": ttft_cell(7800),
        },
    },
    memory: {
        "cells": {
            "a": memory_cell("plain", 1600),
            "b": memory_cell("composed", 808),
            "c": memory_cell("composed", 800, blocks=800),
        }
    },
    overhead: {"cells": {"1000:8": overhead_cell(1000), "4000:8": overhead_cell(4000)}},
    decode: {
        "cells": {
            "1000x1": {
                "cached_tokens": 1000,
                "concurrency": 1,
                "reused_tokens": {"plain": [0, 896], "composed": [1000, 1000]},
                "samples": {way: samples("tpot_ms", 30.0, 31.0) for way in decode.WAYS},
            }
        }
    },
    conversation: {
        "cells": {
            "second turn": {
                "cached_tokens": 2000,
                "samples": {way: conversation_sample(way) for way in conversation.WAYS},
            }
        }
    },
    tax: {
        "cells": {
            f"{kind}:{start}": {
                "kind": kind,
                "samples": {way: samples(value, 10.0, 10.1) for way in tax.WAYS},
            }
            for kind, (value, _) in tax.TRAFFIC.items()
            for start in range(2)
        }
    },
    versions: {
        "cells": {
            f"{kind.key}/{start}": {
                "kind": kind.key,
                "samples": {way: samples(kind.measured, 10.0, 10.1) for way in versions.WAYS},
            }
            for kind in versions.KINDS.values()
            for start in range(2)
        }
    },
    throughput: {
        "pool": {
            "documents": 64,
            "document_tokens": 256,
            "documents_a_question": "5 to 10",
            "zipf": 1.0,
            "encoding_s": 20.5,
            "warm_up": 100,
            "same_tokens": 1911,
        },
        "cells": {
            "prefill:8": throughput_cell("prefill", "off", "on", "composed"),
            "perfect:8": throughput_cell("perfect", "on", "composed"),
        },
    },
}


@pytest.mark.parametrize("module", RESULTS, ids=lambda module: module.__name__)
def test_results_become_tables_figures_and_plots(module: Any, tmp_path: Path) -> None:
    run = begin(tmp_path / "result.json")
    result = json.loads(json.dumps({**run.result, **RESULTS[module]}))
    figures = module.figures(result)
    text = render(result, module.tables(result), figures, "plot.svg")
    assert "a-model" in text and "### " in text
    assert figures
    assert all(panel.series for panel in module.panels(result))
    save_plot(module.panels(result), tmp_path / "plot.svg")


def test_one_point_with_another_block_size_makes_a_report() -> None:
    """`--grid 4000:24:8:bs32`: nothing to draw by cached tokens."""
    result = {**RESULTS[ttft], "cells": {"4000:24:8:bs32": ttft_cell(4000)}}
    assert ttft.tables(result) and ttft.figures(result) and not ttft.panels(result)


def test_figures_of_time_to_first_token() -> None:
    found = {figure.what: figure for figure in ttft.figures(RESULTS[ttft])}
    warm = next(f for what, f in found.items() if what.startswith("warm / perfect prefix, 4k"))
    assert warm.number == pytest.approx((0.95 + 0.9) / 2)
    assert next(f for what, f in found.items() if "8k" in what and "full" in what).number == pytest.approx(
        (4000 / 95 + 4100 / 99) / 2
    )


def test_blocks_with_and_without_sharing() -> None:
    (figure,) = memory.figures(RESULTS[memory])
    assert figure.number == pytest.approx(808 / 1600) and figure.is_reached
