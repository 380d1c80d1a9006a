"""Measurements on disk: one JSON line each, appended as they come, found again on restart."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.metrics import Distribution

Row = dict[str, Any]


class Rows:
    """An append-only file of JSON lines. A last line that was cut off is dropped."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = list(self._read())

    def _read(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                with self.path.open("r+b") as file:
                    file.truncate(whole)
                return
            whole += len(line)
            yield json.loads(line)

    def append(self, rows: Iterable[Row]) -> None:
        """Keep rows; they are on disk when this returns."""
        added = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in added))
        self.rows += added


class FirstTokens:
    """Full prefill's first-token distributions by question, which the other ways are compared with."""

    def __init__(self, path: Path):
        self._rows = Rows(path)
        self._found = {row["id"]: _distribution(row) for row in self._rows.rows}

    def __contains__(self, question: str) -> bool:
        return question in self._found

    def __getitem__(self, question: str) -> Distribution:
        return self._found[question]

    def __setitem__(self, question: str, distribution: Distribution) -> None:
        self._found[question] = distribution
        row = {
            "id": question,
            "token_ids": _packed(distribution.token_ids.astype("<i4")),
            "logprobs": _packed(distribution.logprobs.astype("<f4")),
            "rest": distribution.rest,
        }
        self._rows.append([row])


def _distribution(row: Row) -> Distribution:
    token_ids = np.frombuffer(base64.b64decode(row["token_ids"]), "<i4").astype(np.int64)
    logprobs = np.frombuffer(base64.b64decode(row["logprobs"]), "<f4").astype(np.float32)
    return Distribution(token_ids, logprobs, float(row["rest"]))


def _packed(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()
