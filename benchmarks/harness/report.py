"""A result in Markdown: tables, and the figures to reach with whether they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.spread import Spread

NOT_MEASURED = "–"


@dataclass(frozen=True)
class Table:
    """Rows under columns; ``note`` stands below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_markdown(self) -> str:
        """The table as GitHub shows it, its columns aligned in the source as well."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [f"### {self.title}", "", _line(self.columns, widths), _rule(widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


@dataclass(frozen=True)
class Figure:
    """A number with a target; ``at_most`` says on which side of it it has to be."""

    what: str
    value: Spread | float
    target: float
    at_most: bool

    @property
    def number(self) -> float:
        """The number that counts: a median where there is a spread."""
        return self.value.median if isinstance(self.value, Spread) else self.value

    @property
    def is_reached(self) -> bool:
        """Whether the target is reached."""
        return self.number <= self.target if self.at_most else self.number >= self.target

    def to_json(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        value = self.value.to_json() if isinstance(self.value, Spread) else self.value
        side = "at most" if self.at_most else "at least"
        return {"what": self.what, "value": value, "target": [side, self.target], "reached": self.is_reached}


def figure_table(figures: Sequence[Figure]) -> Table:
    """The figures to reach."""
    rows = []
    for figure in figures:
        value = figure.value.text(3) if isinstance(figure.value, Spread) else f"{figure.value:.3f}"
        target = f"{'at most' if figure.at_most else 'at least'} {figure.target:g}"
        rows.append((figure.what, value, target, "yes" if figure.is_reached else "**no**"))
    return Table("Figures to reach", ("figure", "measured", "target", "reached"), tuple(rows))


def render(result: dict[str, Any], tables: Iterable[Table], figures: Sequence[Figure], plot: str) -> str:
    """The Markdown page of a result."""
    machine, settings = result["machine"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    sizes = sorted({s["block_size"] for s in result["servers"] if "block_size" in s})
    block_sizes = ", ".join(map(str, sizes)) or settings["block_size"] or "default"
    parts = [
        f"# Benchmark `{result['benchmark']}`",
        *([f"`{result['command']}`"] if result.get("command") else []),
        f"{machine['started']}, commit {machine['commit']}, {result.get('minutes', '?')} minutes. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {versions}. "
        f"Model {settings['model']} in {settings['dtype']}, "
        f"{'compiled' if settings['compiled'] else 'eager'}, block size {block_sizes}, "
        f"at most {settings['max_model_len']} positions. Load average at start: "
        f"{machine['load_average_at_start']}.{_counts(result)}",
        "Medians with quartiles in brackets. Ratios are medians of ratios pair by pair, of requests measured "
        "next to each other. Compare ways within a run only.",
    ]
    if settings["quick"]:
        parts.append("**A quick run: too few samples to conclude anything from.**")
    if result.get("skipped"):
        parts.append(f"Not measured for lack of time: {', '.join(result['skipped'])}.")
    if figures:
        parts.append(figure_table(figures).to_markdown())
    parts += [table.to_markdown() for table in tables]
    if plot:
        parts.append(f"![{result['benchmark']}]({plot})")
    return "\n\n".join(parts) + "\n"


def _counts(result: dict[str, Any]) -> str:
    """How many samples there are of each way, in a sentence."""
    counts: dict[str, set[int]] = {}
    for cell in result["cells"].values():
        found = cell.get("samples")
        for way, samples in found.items() if isinstance(found, dict) else ():
            counts.setdefault(way, set()).add(len(samples))
    ways = (f"{way} {' or '.join(map(str, sorted(found)))}" for way, found in counts.items())
    return f" Samples: {', '.join(ways)}." if counts else ""


def shown(spread: Spread | None, digits: int = 1) -> str:
    """A spread for a table, or a dash."""
    return NOT_MEASURED if spread is None else spread.text(digits)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _rule(widths: Sequence[int]) -> str:
    return "|" + "|".join("-" * (width + 2) for width in widths) + "|"
