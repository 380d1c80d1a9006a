"""Plots of results with Matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.spread import Spread


@dataclass(frozen=True)
class Series:
    """Points ``(x, spread)`` under one name."""

    name: str
    points: tuple[tuple[float | str, Spread], ...]


@dataclass(frozen=True)
class Panel:
    """One plot: lines over numbers, or grouped bars over names, or stacked bars."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    bars: bool = False
    stacked: bool = False
    line_at: float | None = None


def save_plot(panels: Sequence[Panel], path: Path) -> None:
    """All panels in one SVG and one PNG beside it. Matplotlib may be missing: then nothing is drawn.

    Raises:
        ImportError: Matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    across = min(len(panels), 2)
    down = -(-len(panels) // across)
    figure, grid = pyplot.subplots(down, across, figsize=(6.4 * across, 4.2 * down), squeeze=False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        (_draw_bars if panel.bars or panel.stacked else _draw_lines)(panel, axes)
        _label(panel, axes)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.tight_layout()
    figure.savefig(path.with_suffix(".svg"))
    figure.savefig(path.with_suffix(".png"), dpi=110)
    pyplot.close(figure)


def _draw_lines(panel: Panel, axes: Any) -> None:
    for series in panel.series:
        xs = [x for x, _ in series.points]
        spreads = [spread for _, spread in series.points]
        axes.errorbar(
            xs,
            [s.median for s in spreads],
            yerr=_errors(spreads),
            marker="o",
            ms=4,
            capsize=3,
            label=series.name,
        )
    if panel.log_x and panel.series:
        axes.set_xscale("log", base=2)
        ticks = sorted({float(x) for series in panel.series for x, _ in series.points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if panel.log_y:
        axes.set_yscale("log")


def _draw_bars(panel: Panel, axes: Any) -> None:
    names = list(dict.fromkeys(str(x) for series in panel.series for x, _ in series.points))
    width = 0.8 if panel.stacked else 0.8 / max(len(panel.series), 1)
    bottoms = dict.fromkeys(names, 0.0)
    for index, series in enumerate(panel.series):
        spreads = {str(x): spread for x, spread in series.points}
        shown = [name for name in names if name in spreads]
        shift = 0.0 if panel.stacked else (index - (len(panel.series) - 1) / 2) * width
        heights = [spreads[name].median for name in shown]
        axes.bar(
            [names.index(name) + shift for name in shown],
            heights,
            width,
            bottom=[bottoms[name] for name in shown] if panel.stacked else None,
            yerr=None if panel.stacked else _errors([spreads[name] for name in shown]),
            capsize=3,
            label=series.name,
        )
        if panel.stacked:
            bottoms.update((name, bottoms[name] + spreads[name].median) for name in shown)
    axes.set_xticks(range(len(names)), names, rotation=20 if len(names) > 4 else 0)


def _errors(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]


def _label(panel: Panel, axes: Any) -> None:
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(True, axis="y", alpha=0.3)
    if panel.line_at is not None:
        axes.axhline(panel.line_at, color="black", linewidth=0.8, linestyle=":")
    if panel.series:
        axes.legend(fontsize=8)
