"""The second turn of a conversation over the same modules: is the first turn's text reused?"""

from __future__ import annotations

import argparse
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import Client, cached_tokens
from benchmarks.harness.modules import Schema, joined_text, make_schema
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table, shown
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.servers import Plugin, Server
from benchmarks.harness.spread import Spread, by_place, interleave, ratio_of
from benchmarks.harness.text import TextSource, read_corpus

WAYS = {
    "composed": "composed; the first turn was asked here",
    "composed-new": "composed; the same, but the first turn was never asked",
    "plain": "plain chat with the modules' text in its system message; the first turn was asked here",
}
Message = dict[str, str]


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--cached", type=int, default=2000, help="tokens of modules (default: %(default)s)")
    parser.add_argument(
        "--first", type=int, default=768, help="tokens the first turn asks (default: %(default)s)"
    )
    parser.add_argument("--answer", type=int, default=128, help="tokens of its answer (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=8, help="conversations of each way (default: %(default)s)"
    )


def run(run: Run, args: argparse.Namespace) -> None:
    """Measure on one server."""
    settings = run.settings
    if not run.wants("second turn"):
        return
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    cached, first, answer, rounds = args.cached, args.first, args.answer, args.rounds
    if settings.quick:
        cached, first, answer, rounds = 512, 300, 16, 2
    cached = settings.cached_tokens(cached)
    schema = make_schema(f"s{uuid4().hex[:8]}", cached, 4, source, np.random.default_rng(settings.seed))
    with Server(settings, Plugin.ON) as server, Client() as client:
        run.add_server(server.describe())
        server.register(schema.to_pml())
        chats = _Chats(server, client, schema, source, first, answer)
        for way in WAYS:
            chats.second_turn(way)
        samples: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for way, place in interleave(dict.fromkeys(WAYS, 1), rounds):
            samples[way].append({"place": place, **chats.second_turn(way)})
        run.add("second turn", {"cached_tokens": cached, "samples": samples})


class _Chats:
    """Conversations about one schema's modules, each about something else."""

    def __init__(
        self, server: Server, client: Client, schema: Schema, source: TextSource, first: int, answer: int
    ):
        self.server, self.client, self.schema, self.source = server, client, schema, source
        self.first, self.answer = first, answer

    def second_turn(self, way: str) -> dict[str, Any]:
        """A conversation of two turns, the second one timed; then asked again for what it reuses.

        The count is of a third request that shares the first turn, with another second turn: the timed
        one leaves its own states behind.
        """
        question = {"role": "user", "content": self.source.take(self.first)}
        heard = question if way != "composed-new" else {**question, "content": self.source.take(self.first)}
        asked = self._ask(way, [heard], self.answer)
        answer = {"role": "assistant", "content": self.client.ask(self.server, asked).text}
        history = [question, answer]
        second = self._ask(way, [*history, self._follow_up()], 1)
        timed = self.client.ask(self.server, second)
        sample: dict[str, Any] = {"ttft_ms": round(timed.ttft_ms, 3)}
        if way != "composed-new":
            sample["reused_tokens"] = cached_tokens(
                self.server, self._ask(way, [*history, self._follow_up()], 1)
            )
        else:
            fresh = [{**question, "content": self.source.take(self.first)}, answer, self._follow_up()]
            sample["reused_tokens"] = cached_tokens(self.server, self._ask(way, fresh, 1))
        return sample

    def _follow_up(self) -> Message:
        return {"role": "user", "content": self.source.take(24)}

    def _ask(self, way: str, messages: list[Message], num_answer: int) -> Ask:
        body: dict[str, Any] = {"ignore_eos": False}
        if way == "plain":
            messages = [{"role": "system", "content": joined_text(self.schema.modules)}, *messages]
        else:
            body["pml"] = self.schema.prompt()
        return Ask(messages, 0, num_answer, body)


def _times(cell: Cell, way: str) -> dict[tuple[int, ...], float]:
    return by_place(cell["samples"][way], "ttft_ms")


def tables(result: Result) -> list[Table]:
    """Time to first token of the second turn, and what it reused."""
    rows = []
    for cell in result["cells"].values():
        for way, what in WAYS.items():
            reused = Spread.of(sample["reused_tokens"] for sample in cell["samples"][way])
            ratio = ratio_of(_times(cell, way), _times(cell, "composed"))
            times = Spread.of(_times(cell, way).values())
            rows.append((what, shown(times), shown(ratio, 2), f"{reused.median:.0f}"))
    columns = ("second turn", "time to first token, ms", "/ composed", "reused tokens")
    note = f"{next(iter(result['cells'].values()))['cached_tokens']} tokens are in modules."
    return [Table("Second turn", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """How much of the first turn is reused, measured by what vLLM's prefix cache reuses of a plain one.

    Both reuse whole blocks only, which begin at different places.
    """
    cell = next(iter(result["cells"].values()))
    beyond = {
        way: Spread.of(sample["reused_tokens"] for sample in cell["samples"][way]).median
        - cell["cached_tokens"]
        for way in ("composed", "plain")
    }
    what = "tokens of the first turn reused in the second: composed / plain prefix hit"
    return [Figure(what, beyond["composed"] / max(beyond["plain"], 1), 0.8, False)]


def panels(result: Result) -> list[Panel]:
    """Times by way."""
    cell = next(iter(result["cells"].values()))
    series = Series("time to first token", tuple((w, Spread.of(_times(cell, w).values())) for w in WAYS))
    return [Panel("Second turn", "", "ms", (series,), bars=True)]
