"""What the rows say: metrics by way, differences to full prefill with their intervals, times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import NOT_MEASURED, Table
from benchmarks.harness.spread import Place, Spread, ratio_of
from benchmarks.quality.bootstrap import Interval, interval, paired
from benchmarks.quality.rows import Row
from benchmarks.quality.ways import FULL, Way

# Metrics by their name in rows: the column's title, its scale, digits shown.
# The score is LongBench's, of its data sets only.
METRICS: dict[str, tuple[str, float, int]] = {
    "score": ("score", 100, 1),
    "f1": ("F1", 100, 1),
    "exact": ("exact", 100, 1),
    "contains": ("contains", 100, 1),
    "nll": ("gold NLL", 1, 3),
    "kl": ("KL", 1, 3),
}
Summary = dict[str, Any]


def summarize(rows: Sequence[Row], times: Sequence[Row], questions: Collection[str]) -> Summary:
    """Ways by name, in the order of rows: means, differences, recomputed share, times.

    Only the named questions count, and of them only those that were answered in every way: means of
    different ways are then of the same questions.
    """
    wanted = set(questions)
    by_way: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["id"] in wanted:
            by_way.setdefault(row["way"], {})[row["id"]] = row
    common = set.intersection(*(set(found) for found in by_way.values())) if by_way else set()
    by_way = {way: {i: found[i] for i in sorted(common)} for way, found in by_way.items()}
    timed = _times(times, wanted)
    return {way: _summarize(way, by_way, timed) for way in by_way} if common else {}


def _summarize(way: str, by_way: Mapping[str, Mapping[str, Row]], times: Mapping[str, Any]) -> Summary:
    rows, full = by_way[way], by_way.get(FULL, {})
    base = Way.read(way).base.name
    summary: Summary = {"questions": len(rows)}
    for metric in METRICS:
        if not all(metric in row for row in rows.values()):
            continue
        own = {i: float(row[metric]) for i, row in rows.items()}
        summary[metric] = interval(np.array(list(own.values()))).to_json()
        against = paired(own, {i: float(row[metric]) for i, row in full.items()})
        if way != FULL and against is not None:
            summary[f"{metric}_against_full"] = against.to_json()
    shares = [row["recomputed"] / row["in_modules"] for row in rows.values()]
    summary["recomputed_share"] = float(np.mean(shares)) if way != FULL else 1.0
    if way in times:
        summary["ttft_ms"] = Spread.of(times[way].values()).to_json()
        for name, other in (("base", base), (FULL, FULL)):
            if other in times and (ratio := ratio_of(times[way], times[other])) is not None:
                summary[f"ttft_ratio_to_{name}"] = ratio.to_json()
    return summary


def _times(rows: Sequence[Row], wanted: set[str]) -> dict[str, dict[Place, float]]:
    """Milliseconds by way and place: a number for the question, and its turn."""
    numbers: dict[str, int] = {}
    times: dict[str, dict[Place, float]] = {}
    for row in rows:
        if row["id"] in wanted:
            number = numbers.setdefault(row["id"], len(numbers))
            times.setdefault(row["way"], {})[number, row["turn"]] = float(row["ms"])
    return times


def tables(summary: Summary) -> list[Table]:
    """The ways, and their differences to full prefill."""
    counts = {one["questions"] for one in summary.values()}
    questions = " or ".join(map(str, sorted(counts)))
    note = (
        f"{questions} questions, each over its passages in its own order (pieces of one text in theirs). "
        "Brackets: 95% paired bootstrap intervals over questions."
    )
    metrics = [metric for metric in METRICS if all(metric in one for one in summary.values())]
    columns = ("way", "recomputed", *(METRICS[metric][0] for metric in metrics))
    means = [(way, _share(one), *(_mean(one, metric) for metric in metrics)) for way, one in summary.items()]
    against = [
        (way, _share(one), *(_against(one, metric) for metric in metrics), *_time_cells(one))
        for way, one in summary.items()
    ]
    time_columns = ("TTFT, ms", "to unrepaired", "to full")
    return [
        Table(
            "Quality",
            columns,
            tuple(means),
            "F1, exact match and containment in percent; NLL and KL in nats.",
        ),
        Table("Differences to full prefill", (*columns, *time_columns), tuple(against), note),
    ]


def panels(summary: Summary) -> list[Panel]:
    """F1 and NLL against the recomputed share, both as differences to full prefill."""
    return [
        Panel(
            f"{title}: difference to full prefill",
            "tokens recomputed, %",
            title,
            _series(summary, metric, scale),
            line_at=0.0,
        )
        for metric, (title, scale, _) in METRICS.items()
        if metric in ("f1", "nll", "kl")
    ]


def _series(summary: Summary, metric: str, scale: float) -> tuple[Series, ...]:
    points: dict[str, list[tuple[float | str, Spread]]] = {}
    for way, one in summary.items():
        found = one.get(f"{metric}_against_full")
        if found is None:
            continue
        spread = Spread(
            found["mean"] * scale, found["low"] * scale, found["high"] * scale, found["questions"]
        )
        points.setdefault(Way.read(way).family, []).append((one["recomputed_share"] * 100, spread))
    return tuple(Series(name, tuple(sorted(p, key=lambda at: float(at[0])))) for name, p in points.items())


def _share(one: Summary) -> str:
    return f"{one['recomputed_share']:.1%}"


def _mean(one: Summary, metric: str) -> str:
    _, scale, digits = METRICS[metric]
    return f"{one[metric]['mean'] * scale:.{digits}f}"


def _against(one: Summary, metric: str) -> str:
    found = one.get(f"{metric}_against_full")
    if found is None:
        return NOT_MEASURED
    _, scale, digits = METRICS[metric]
    bounds = Interval(found["mean"], found["low"], found["high"], found["questions"])
    return bounds.text(digits, scale, sign=metric != "kl")


def _time_cells(one: Summary) -> tuple[str, str, str]:
    if "ttft_ms" not in one:
        return (NOT_MEASURED,) * 3
    ratios = (one.get(f"ttft_ratio_to_{name}") for name in ("base", FULL))
    shown = [NOT_MEASURED if ratio is None else f"{ratio['median']:.2f}" for ratio in ratios]
    return (f"{one['ttft_ms']['median']:.0f}", *shown)  # type: ignore[return-value]
