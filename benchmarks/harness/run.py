"""One run of one benchmark: its result file, what is in it already, and how long it may go on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.settings import RESULTS, Settings

Result = dict[str, Any]
Cell = dict[str, Any]
# What a run may be resumed with another value of: how long it may take, and which cells it has.
MAY_DIFFER = {"minutes", "grid", "context", "concurrency", "load", "traffic", "starts", "no_scarce"}


class RunError(RuntimeError):
    """A run cannot be begun or continued; the message says why."""


class Run:
    """The result of a run, saved after every cell so that a run that ends early can be resumed.

    A *cell* is one point that is measured: its raw samples and what was asked, under a key. With
    ``resume`` the cells of an earlier run with the same settings are kept and not measured again.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        options: dict[str, Any],
        out: Path | None,
        *,
        resume: bool,
        command: str = "",
    ):
        self.settings = settings
        self.path = out or RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        self._started = time.monotonic()
        self.result: Result = {
            "benchmark": name,
            "command": command,
            "machine": describe_machine(),
            "settings": settings.to_json(),
            "options": options,
            "servers": [],
            "cells": {},
        }
        if resume and self.path.exists():
            self._continue(json.loads(self.path.read_text(encoding="utf-8")))
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _continue(self, earlier: Result) -> None:
        for key in ("benchmark", "settings", "options"):
            ours, theirs = (
                {k: v for k, v in _items(r[key]) if k not in MAY_DIFFER} for r in (self.result, earlier)
            )
            if ours != theirs:
                raise RunError(f"{self.path} was measured with other {key}: {theirs}, not {ours}")
        self.result["cells"] = earlier["cells"]
        self.result["servers"] = earlier["servers"]
        self.result["resumed_from"] = earlier["machine"]
        # What a benchmark says of all its cells.
        for key in earlier.keys() - {"figures", "skipped", "minutes"}:
            self.result.setdefault(key, earlier[key])
        self.say(f"resuming {self.path.name}: {len(earlier['cells'])} cells are there")

    def has(self, key: str) -> bool:
        """Whether a cell is there already."""
        return key in self.result["cells"]

    def wants(self, key: str) -> bool:
        """Whether a cell is still to be measured: it is not there, and time is left."""
        if self.has(key):
            return False
        if self.is_over:
            skipped = self.result.setdefault("skipped", [])
            skipped.append(key)
            self.say(f"{key}: skipped, the time is over")
            return False
        return True

    @property
    def is_over(self) -> bool:
        """Whether the time that was allowed is used up."""
        minutes = self.settings.minutes
        return minutes is not None and time.monotonic() - self._started > minutes * 60

    def add(self, key: str, cell: Cell) -> None:
        """Keep a measured cell."""
        self.result["cells"][key] = cell
        self.save()

    def add_server(self, description: dict[str, Any]) -> None:
        """Note how a server was started."""
        if description not in self.result["servers"]:
            self.result["servers"].append(description)

    def save(self) -> None:
        """Write the result; a reader never sees half of it."""
        self.result["minutes"] = round((time.monotonic() - self._started) / 60, 1)
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        new.replace(self.path)

    def say(self, text: str) -> None:
        """Progress, on stderr."""
        print(f"[{(time.monotonic() - self._started) / 60:5.1f} min] {text}", file=sys.stderr, flush=True)


def _items(value: Any) -> list[tuple[str, Any]]:
    """A JSON object's items; lists and tuples are the same thing to JSON."""
    if not isinstance(value, dict):
        return [("", value)]
    return [(k, list(v) if isinstance(v, tuple) else v) for k, v in value.items()]


def cells_by_kind(result: Result) -> dict[str, list[Cell]]:
    """Cells of one ``kind``, of several starts, together."""
    kinds: dict[str, list[Cell]] = {}
    for cell in result["cells"].values():
        kinds.setdefault(cell["kind"], []).append(cell)
    return kinds
