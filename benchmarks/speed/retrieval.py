"""Retrieval as it is: passages found by BM25, in their ranking, marked, over HTTP, many in flight."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import ask_at_once
from benchmarks.harness.run import Cell, Run
from benchmarks.harness.servers import MODEL_NAME, Plugin, Server, let_others_rest
from benchmarks.harness.spread import interleave
from benchmarks.speed.passages import Found, Library
from benchmarks.speed.reordering import Reordering
from benchmarks.speed.retrieval_report import LOADS, POPULAR, WAYS, figures, panels, said_of, tables

__all__ = ["add_arguments", "figures", "panels", "run", "tables"]

CONCURRENCY = "1,2,4,8,16,32"
# Tokens of the chat template around a question, at most; only a guess for vLLM's benchmark.
AROUND = 32
# Of the passages that are sent before `seen`, so many go into one request, and so many requests at once.
PASSAGES_A_REQUEST, REQUESTS_AT_ONCE = 10, 4
# So many questions are compared token by token between the ways.
COMPARED = 8


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--passages", help="JSONL, or a folder of it (default: texts of installed packages)")
    parser.add_argument("--num-passages", type=int, help="draw so many of them (default: all)")
    parser.add_argument("--load", default=",".join(LOADS), help="kinds of load (default: %(default)s)")
    parser.add_argument("--concurrency", default=CONCURRENCY, help="in flight (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each way (default: %(default)s)")
    parser.add_argument(
        "--requests", type=int, default=16, help="of a burst, at least, and two for each in flight beyond 8"
    )
    parser.add_argument("--answer-tokens", type=int, default=16, help="of each (default: %(default)s)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=200,
        help="questions that each way is asked before the first sample (default: %(default)s)",
    )
    parser.add_argument(
        "--host-gib", type=float, default=2.0, help="records of marked passages (default: %(default)s)"
    )
    parser.add_argument(
        "--disk-gib", type=float, default=0.0, help="the same in files (default: %(default)s)"
    )


class Questions:
    """Questions for bursts: each way is asked the same ones, in the same order."""

    def __init__(self, library: Library, tokenizer: Any, num_answer_tokens: int, seed: int):
        self._found = library.find(len(library.questions), seed)
        self._tokenizer = tokenizer
        self._num_answer_tokens = num_answer_tokens
        self._next = 0
        self._rng = np.random.default_rng(seed)
        weights = 1 / np.arange(1, min(POPULAR, len(self._found)) + 1)
        self._weights = weights / weights.sum()
        self._reordering: Reordering | None = None

    def take(self, load: str, count: int) -> list[Found]:
        """The next questions of a kind of load."""
        if load == "popular":
            picked = self._rng.choice(len(self._weights), count, p=self._weights).tolist()
        else:
            picked = [(self._next + i) % len(self._found) for i in range(count)]
            self._next += count
        return [self._found[i] for i in picked]

    def asks(self, way: str, found: Sequence[Found]) -> list[Ask]:
        """The requests of a way; only one of them says what its passages are."""
        if way == "reordered":
            self._reordering = self._reordering or Reordering()
            found = self._reordering.reorder(found)
        return [self.ask(one, marked=way == "marks") for one in found]

    def ask(self, found: Found, *, marked: bool) -> Ask:
        """A question behind its passages, each a part of the message by itself."""
        mark = {"cache_control": {"type": "ephemeral"}} if marked else {}
        parts = [{"type": "text", "text": passage, **mark} for passage in found.passages]
        parts.append({"type": "text", "text": found.question})
        text = "\n".join(part["text"] for part in parts)
        length = len(self._tokenizer.encode(text, add_special_tokens=False)) + AROUND
        return Ask([{"role": "user", "content": parts}], length, self._num_answer_tokens)


def run(run: Run, args: argparse.Namespace) -> None:
    """A server for each way, all at once; bursts in turn, every way asked the same questions."""
    settings = run.settings
    library = Library.read(Path(args.passages) if args.passages else None, args.num_passages, settings.seed)
    questions = Questions(
        library, AutoTokenizer.from_pretrained(settings.model), args.answer_tokens, settings.seed
    )
    ways, rounds = _ways(run, args.ways), 2 if settings.quick else args.rounds
    levels = [2] if settings.quick else [int(level) for level in args.concurrency.split(",")]
    points = [(load, level) for load in args.load.split(",") for level in levels]
    if all(run.has(f"{load}:{level}") for load, level in points):
        return
    with contextlib.ExitStack() as stack:
        records = [f"host_gib={args.host_gib}"]
        if args.disk_gib:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-records-"))
            records += [f"dir={folder}", f"disk_gib={args.disk_gib}"]
        servers = {way: stack.enter_context(_server(way, settings, records)) for way in ways}
        for server in servers.values():
            run.add_server(server.describe())
        warm_up = 4 if settings.quick else args.warm_up
        known = run.result.setdefault("passages", {})
        known |= {
            "source": library.source,
            "passages": len(library.passages),
            "questions": len(library.questions),
            "warm_up": warm_up,
            "kv_gib": settings.kv_gib,
            "host_gib": args.host_gib,
            "disk_gib": args.disk_gib,
        }
        run.say(f"{len(servers)} servers; {warm_up} questions each before the first sample")
        known |= _compare_tokens(servers, questions)
        _warm_up(servers, questions, warm_up)
        for load, level in points:
            key = f"{load}:{level}"
            if run.wants(key):
                if load == "seen" and "sent_s" not in known and "marks" in servers:
                    known["sent_s"] = _send_all(servers["marks"], library, questions, settings.quick)
                    run.say(f"every passage was sent, marked: {known['sent_s']:.0f} s")
                asked = {way: servers[way] for way in servers if way in LOADS[load].ways}
                count = 4 if settings.quick else max(args.requests, 2 * level if level > 8 else level)
                cell = _measure(asked, questions, load, level, count, rounds)
                run.add(key, {"load": load, "concurrency": level, **cell})
                run.say(f"{key}: {said_of(cell)}")


def _ways(run: Run, given: str) -> list[str]:
    ways = given.split(",")
    if "reordered" in ways and find_spec("contextpilot") is None:
        run.say("reordered is left out: pip install 'vllm-promptcache[reorder]'")
        ways.remove("reordered")
    return ways


def _server(way: str, settings: Any, records: Sequence[str]) -> Server:
    if way == "marks":
        arguments = [f"--prompt-cache-config.{option}" for option in records]
        return Server(settings, Plugin.ON, *arguments, name=WAYS[way])
    arguments = ["--no-enable-prefix-caching"] if way == "off" else []
    return Server(settings, Plugin.OFF, *arguments, name=WAYS[way])


def _compare_tokens(servers: dict[str, Server], questions: Questions) -> dict[str, Any]:
    """How many of a few questions are the same prompt token by token in all ways but the one that reorders
    passages, and how many tokens they have in each."""
    found = questions.take("new", COMPARED)
    prompts: dict[str, list[list[int]]] = {}
    for way, server in servers.items():
        prompts[way] = []
        for ask in questions.asks(way, found):
            body = {"messages": ask.prompt, "max_tokens": 1, "return_token_ids": True}
            answer = server.call("POST", ask.path, {"model": MODEL_NAME, **body})
            prompts[way].append(answer["prompt_token_ids"])
    ordered = [prompts[way] for way in prompts if way != "reordered"]
    same = sum(all(one == each[0] for one in each) for each in zip(*ordered, strict=True))
    lengths = {way: sum(map(len, each)) for way, each in prompts.items()}
    return {"compared": len(found), "same_tokens": same, "tokens_compared": lengths}


def _warm_up(servers: dict[str, Server], questions: Questions, count: int) -> None:
    """What caches hold grows with what they have been asked; a server without one is asked a few."""
    found = questions.take("new", count)
    for way, server in servers.items():
        asked = found[:4] if way == "off" else found
        ask_at_once(server, questions.asks(way, asked), 8)


def _send_all(server: Server, library: Library, questions: Questions, quick: bool) -> float:
    """Send every passage once, marked, a few in a request; returns the seconds that it took."""
    passages = library.passages[: 4 * PASSAGES_A_REQUEST] if quick else library.passages
    starts = range(0, len(passages), PASSAGES_A_REQUEST)
    asks = [
        questions.ask(Found("?", passages[start : start + PASSAGES_A_REQUEST]), marked=True)
        for start in starts
    ]
    begun = time.perf_counter()
    ask_at_once(server, asks, REQUESTS_AT_ONCE)
    return time.perf_counter() - begun


def _measure(
    servers: dict[str, Server], questions: Questions, load: str, level: int, count: int, rounds: int
) -> Cell:
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in servers}
    asked: dict[tuple[int, ...], list[Found]] = {}
    for way, place in interleave(dict.fromkeys(servers, 1), rounds):
        if place not in asked:
            asked = {place: questions.take(load, count)}
        server, asks = servers[way], questions.asks(way, asked[place])
        let_others_rest()
        before = server.prompt_tokens()
        burst = ask_at_once(server, asks, level)
        after = server.prompt_tokens()
        cached, total = (later - earlier for later, earlier in zip(after, before, strict=True))
        samples[way].append({"place": place, "cached": cached, "tokens": total, **burst.to_json()})
    memory = {way: server.memory_bytes() for way, server in servers.items()}
    return {"requests": count, "samples": samples, "memory_bytes": memory}
