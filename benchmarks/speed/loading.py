"""What loading a pool's members from records takes, beside encoding them and beside vLLM's own ways."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from transformers import AutoTokenizer

from benchmarks.harness.ask import Ask
from benchmarks.harness.load import Client
from benchmarks.harness.modules import Module, joined_ids, make_module, shuffled
from benchmarks.harness.run import Cell, Run
from benchmarks.harness.servers import Plugin, Server, ServerError
from benchmarks.harness.spread import interleave
from benchmarks.harness.text import TextSource, read_corpus
from benchmarks.speed.loading_report import RESTART, WAYS, figures, panels, said_of, tables

__all__ = ["add_arguments", "figures", "panels", "run", "tables"]

MEMBERS, NEW = 8, 16
# Groups of members that are asked for in turn, and the tokens that the KV cache holds beside a group: when
# a group's turn comes again, others have had its blocks.
GROUPS, ROOM = 4, 3000
# vLLM's block size on CPUs.
BLOCK = 128


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--tokens",
        default="4000,4096",
        help="of eight members together; empty for none (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="of each way (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="(default: %(default)s)")
    parser.add_argument(
        "--restart", type=int, default=200, help="members that outlive a restart; 0 for none (default: 200)"
    )
    parser.add_argument("--restart-tokens", type=int, default=200, help="of each (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=3, help="restarts (default: %(default)s)")


def run(run: Run, args: argparse.Namespace) -> None:
    """First tokens on three servers in turn, then restarts of another."""
    settings = run.settings
    source = TextSource(
        read_corpus(settings.data), AutoTokenizer.from_pretrained(settings.model), settings.seed
    )
    run.result["text"] = {"source": source.corpus.source, "tokens": source.num_distinct_tokens}
    lengths = [1024] if settings.quick else [int(length) for length in args.tokens.split(",") if length]
    rounds = 2 if settings.quick else args.rounds
    ways = args.ways.split(",")
    for length in lengths:
        if run.wants(str(length)):
            run.add(str(length), _first_tokens(run, length, source, ways, rounds))
            run.say(f"{length} tokens: {said_of(run.result['cells'][str(length)])}")
    count = min(args.restart, 8) if settings.quick else args.restart
    if count and run.wants(RESTART):
        restarts = 1 if settings.quick else args.restarts
        run.add(RESTART, _restarts(run, count, args.restart_tokens, source, restarts))
        run.say(f"restart: {said_of(run.result['cells'][RESTART])}")


# -- first tokens --------------------------------------------------------------------------------------


def _first_tokens(run: Run, length: int, source: TextSource, ways: list[str], rounds: int) -> Cell:
    pools = [_Pool.fill(f"p{uuid4().hex[:8]}", length // MEMBERS, source) for _ in range(GROUPS)]
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with contextlib.ExitStack() as stack:
        servers = _servers(run, stack, length, ways)
        for name in ("memory", "files"):
            for pool in pools if name in servers else ():
                servers[name].register(pool.to_pml())
        client = stack.enter_context(Client())
        asking = _Asking(client, servers, pools, source, run.settings.seed)
        for way in ways:  # the first time, prompts are computed and records are made
            asking.prepare(way)
        for way, place in interleave(dict.fromkeys(ways, 1), rounds):
            samples[way].append({"place": place, "ttft_ms": round(asking.ask(way), 3)})
    return {"tokens": length, "new_tokens": NEW, "samples": samples, "said": asking.said}


def _servers(run: Run, stack: contextlib.ExitStack, length: int, ways: list[str]) -> dict[str, Server]:
    """The servers that the ways ask: plain vLLM, records in memory, records in files."""
    settings, servers = run.settings, {}
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-records-"))
    # Any server has to hold the longest prompt that its model takes; this one takes no longer ones.
    positions = length + ROOM
    blocks = -(-positions // (settings.block_size or BLOCK)) + 1  # one holds nothing
    small = ["--max-model-len", str(positions), "--num-gpu-blocks-override", str(blocks)]
    records = {
        "memory": ("host_gib=4",),
        "files": ("host_gib=0", f"dir={folder}"),
    }
    if {"full", "prefix"} & set(ways):
        servers["plain"] = Server(settings, Plugin.OFF, name="vLLM")
    for name, options in records.items():
        if any(_SERVER[way] == name for way in ways):
            given = [f"--prompt-cache-config.{option}" for option in options]
            servers[name] = Server(settings, Plugin.ON, *small, *given, name=f"records in {name}")
    for server in servers.values():
        run.add_server(stack.enter_context(server).describe())
    return servers


_SERVER = {
    "full": "plain",
    "prefix": "plain",
    "placed": "memory",
    "records": "memory",
    "files": "files",
    "cold": "memory",
}


class _Pool:
    """A pool of eight members; each prompt takes them in another order."""

    def __init__(self, name: str, members: list[Module]):
        self.name, self.members = name, members

    @classmethod
    def fill(cls, name: str, num_tokens: int, source: TextSource) -> _Pool:
        return cls(name, [make_module(f"m{i}", num_tokens, source) for i in range(MEMBERS)])

    def to_pml(self) -> str:
        members = "".join(member.to_pml() for member in self.members)
        return f'<schema name="{self.name}"><pool name="found">{members}</pool></schema>'

    def prompt(self, members: list[Module]) -> str:
        chosen = "".join(f"<{member.name}/>" for member in members)
        return f'<prompt schema="{self.name}"><found>{chosen}</found></prompt>'


class _Asking:
    """Requests of each way, and what the servers say of them."""

    def __init__(
        self, client: Client, servers: dict[str, Server], pools: list[_Pool], source: TextSource, seed: int
    ):
        self._client, self._servers, self._source = client, servers, source
        self._rng = np.random.default_rng(seed)
        # Each server is asked for its groups in turn, so that a group's placements are gone by then.
        self._turns: dict[str, Iterator[_Pool]] = {
            name: chain.from_iterable(repeat(pools)) for name in ("plain", "memory", "files")
        }
        self._plain = joined_ids(pools[0].members)
        self.said: dict[str, list[list[int]]] = {}

    def prepare(self, way: str) -> None:
        """What a way rests on is made: each group's records, once; a prefix."""
        name = _SERVER[way]
        for _ in range(GROUPS if way in ("records", "files") else 0):
            pool = next(self._turns[name])
            self._time(name, self._composed(pool, pool.members))
        if name == "plain":
            self.ask(way)

    def ask(self, way: str) -> float:
        """Milliseconds to the first token of one more request of a way."""
        name = _SERVER[way]
        if name == "plain":
            salt = {"cache_salt": uuid4().hex} if way == "full" else {}
            prompt = [*self._plain, *self._source.token_ids(self._source.take(NEW))]
            return self._time(name, Ask(prompt, len(prompt), body=salt))
        pool = next(self._turns[name])
        order = shuffled(pool.members, self._rng)
        if way == "placed":
            self._time(name, self._composed(pool, order))
        salt = {"cache_salt": uuid4().hex} if way == "cold" else {}
        before = self._counts(name)
        milliseconds = self._time(name, self._composed(pool, order, **salt))
        found = [after - earlier for after, earlier in zip(self._counts(name), before, strict=True)]
        self.said.setdefault(way, []).append(found)
        return milliseconds

    def _composed(self, pool: _Pool, members: list[Module], **body: Any) -> Ask:
        new = self._source.take(NEW)
        tokens = len(joined_ids(members)) + NEW
        return Ask(new, tokens, body={"pml": pool.prompt(members), **body})

    def _time(self, name: str, ask: Ask) -> float:
        return self._client.ask(self._servers[name], ask).ttft_ms

    def _counts(self, name: str) -> tuple[int, int]:
        stats = self._servers[name].call("GET", "/v1/prompt_cache/stats")
        return stats["loads"], stats["misses"]


# -- restarts ------------------------------------------------------------------------------------------


def _restarts(run: Run, count: int, num_tokens: int, source: TextSource, restarts: int) -> Cell:
    """How long a server takes until a schema's members are resident: at first, and after it was stopped."""
    name = f"r{uuid4().hex[:8]}"
    members = "".join(make_module(f"m{i}", num_tokens, source).to_pml() for i in range(count))
    pml = f'<schema name="{name}"><pool name="found">{members}</pool></schema>'
    samples: dict[str, list[dict[str, Any]]] = {"encoded": [], "restarted": []}
    with tempfile.TemporaryDirectory(prefix="benchmark-records-") as folder:
        config = [f"--prompt-cache-config.dir={folder}", "--prompt-cache-config.host_gib=4"]
        for start in range(restarts + 1):
            with Server(run.settings, Plugin.ON, *config, name="a folder of records") as server:
                run.add_server(server.describe())
                if start == 0:
                    server.register(pml)
                begun = time.perf_counter()
                server.call("POST", f"/v1/prompt_cache/schemas/{name}/warm", {})
                _wait_until_resident(server, count)
                seconds = time.perf_counter() - begun
                _wait_for_files(server, Path(folder, "records"), count)
                way = "restarted" if start else "encoded"
                samples[way].append({"place": [start, 0], "seconds": round(seconds, 3)})
                run.say(f"{count} members {way} in {seconds:.2f} s")
    return {"members": count, "tokens": count * num_tokens, "samples": samples}


def _wait_for_files(server: Server, folder: Path, count: int) -> None:
    """Wait until every member's file is written, in the background of what a client waits for."""
    deadline = time.monotonic() + 120
    while len(files := list(folder.glob("*.safetensors"))) < count:
        if time.monotonic() > deadline:
            raise ServerError(f"{server.name}: {len(files)} of {count} records are in files")
        time.sleep(0.1)


def _wait_until_resident(server: Server, count: int) -> None:
    deadline = time.monotonic() + 600
    while True:
        stats = server.call("GET", "/v1/prompt_cache/stats")
        if not stats["units_encoding"] and stats["units_resident"] >= count:
            return
        if time.monotonic() > deadline:
            raise ServerError(f"{server.name}: {stats['units_resident']} of {count} members are resident")
        time.sleep(0.02)
