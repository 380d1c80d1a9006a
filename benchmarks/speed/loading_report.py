"""The result of `loading`: first tokens by where a pool's members are, what loading takes, restarts."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result
from benchmarks.harness.spread import Spread, by_place, ratio_of

WAYS = {
    "full": "full prefill by vLLM without the plugin: a salt of its own",
    "prefix": "perfect prefix: vLLM's prefix cache has all of it, in whole blocks",
    "placed": "eight members in an order of this prompt, all placed there before",
    "records": "the same, none placed, all in records in memory",
    "files": "the same, in files only",
    "cold": "the same, encoded for the request",
}
RESTART = "restart"
RATIOS = (
    ("placed / prefix", "placed", "prefix", 1.0),
    ("records / prefix", "records", "prefix", 1.5),
    ("files / full", "files", "full", 1 / 8),
    ("cold / full", "cold", "full", None),
)
LOADING = "loading / encoding"


def _times(cell: Cell, way: str) -> dict[tuple[int, ...], float]:
    return by_place(cell["samples"].get(way, ()), "ttft_ms")


def _spread(cell: Cell, way: str) -> Spread | None:
    times = _times(cell, way)
    return Spread.of(times.values()) if times else None


def _ratio(cell: Cell, above: str, below: str) -> Spread | None:
    return ratio_of(_times(cell, above), _times(cell, below))


def loading_of(cell: Cell) -> Spread | None:
    """What loading the members adds to a request over what encoding them adds, pair by pair."""
    placed, loaded, encoded = (_times(cell, way) for way in ("placed", "records", "cold"))
    places = [place for place in loaded if place in placed and place in encoded]
    if not places:
        return None
    return Spread.of((loaded[p] - placed[p]) / (encoded[p] - placed[p]) for p in places)


def restart_of(cell: Cell) -> Spread:
    """Seconds after a restart over seconds of encoding."""
    (encoded,) = (sample["seconds"] for sample in cell["samples"]["encoded"])
    return Spread.of(sample["seconds"] / encoded for sample in cell["samples"]["restarted"])


def said_of(cell: Cell) -> str:
    """A cell in a line."""
    if "members" in cell:
        return f"restarted / encoded {restart_of(cell).text(3)}"
    found = [(name, _ratio(cell, above, below)) for name, above, below, _ in RATIOS]
    found.append((LOADING, loading_of(cell)))
    return ", ".join(f"{name} {ratio.median:.3f}" for name, ratio in found if ratio)


def _lengths(result: Result) -> Iterable[tuple[str, Cell]]:
    return ((f"{cell['tokens']}", cell) for key, cell in result["cells"].items() if key != RESTART)


def tables(result: Result) -> list[Table]:
    """Ratios, times, what servers said, restarts."""
    cells = list(_lengths(result))
    ways = [way for way in WAYS if any(way in cell["samples"] for _, cell in cells)]
    ratios = [
        (name, *(shown(_ratio(cell, a, b), 2) for _, a, b, _ in RATIOS), shown(loading_of(cell), 3))
        for name, cell in cells
    ]
    times = [(name, *(shown(_spread(cell, way)) for way in ways)) for name, cell in cells]
    said = [(name, *(_said(cell, way) for way in ways)) for name, cell in cells]
    note = (
        f"Text: {result['text']['source']}. " + "; ".join(f"*{way}*: {WAYS[way]}" for way in ways) + ". "
        f"*{LOADING}*: (records - placed) / (cold - placed). vLLM's prefix cache computes again what "
        "does not fill a block."
    )
    made = []
    if cells:
        columns = (*(name for name, *_ in RATIOS), LOADING)
        made = [
            Table("Ratios", ("tokens", *columns), tuple(ratios)),
            Table("Time to first token, ms", ("tokens", *ways), tuple(times), note),
            Table("Modules loaded and encoded for each request", ("tokens", *ways), tuple(said)),
        ]
    return [*made, *([_restart_table(result["cells"][RESTART])] if RESTART in result["cells"] else [])]


def _said(cell: Cell, way: str) -> str:
    found = {tuple(counts) for counts in cell["said"].get(way, ())}
    return " or ".join(f"{loaded}, {encoded}" for loaded, encoded in sorted(found)) or "–"


def _restart_table(cell: Cell) -> Table:
    encoded, restarted = (
        Spread.of(sample["seconds"] for sample in cell["samples"][way]) for way in ("encoded", "restarted")
    )
    row = (str(cell["members"]), str(cell["tokens"]), f"{encoded.median:.2f}", restarted.text(2))
    note = (
        "Seconds from the call that asks for all members until the last is resident: on a new folder, and on "
        "a server that was started again on it."
    )
    columns = ("members", "tokens", "encoded, s", "loaded after a restart, s")
    return Table("A restart", columns, (row,), note)


def figures(result: Result) -> list[Figure]:
    """What loading must be worth."""
    found = []
    for name, cell in _lengths(result):
        what = f"{name} tokens in 8 members, a new order"
        for ratio, above, below, target in RATIOS:
            value = _ratio(cell, above, below)
            if value is not None and target is not None:
                found.append(Figure(f"{ratio}: {what}", value, target, True))
        if (value := loading_of(cell)) is not None:
            found.append(Figure(f"{LOADING}: {name} tokens", value, 1 / 20, True))
    if RESTART in result["cells"]:
        cell = result["cells"][RESTART]
        what = f"loaded after a restart / encoded: {cell['members']} members"
        found.append(Figure(what, restart_of(cell), 1 / 10, True))
    return found


def panels(result: Result) -> list[Panel]:
    """First tokens by way."""
    series = [
        Series(f"{name} tokens", tuple((way, s) for way in WAYS if (s := _spread(cell, way))))
        for name, cell in _lengths(result)
    ]
    drawn = tuple(one for one in series if one.points)
    return [Panel("Time to first token", "", "ms", drawn, bars=True, log_y=True)] if drawn else []
