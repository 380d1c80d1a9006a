"""Eight clients that send the worst documents known, one that sends plain requests, one that asks for health.

Run by ``make soak ARGS=hostile``, on a machine that does nothing else, for ``SOAK_SECONDS``: a third of it
beside eight plain clients of as many tokens, the rest beside the hostile ones. Over loopback only. The eight
have a process of their own, so that whoever measures does not wait for them.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.server.support import TRAVEL, Server, serving

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
NUM_CLIENTS = 8
HEALTH_S = 0.25
TIMEOUT_S = 120.0
# How much more memory the server may hold at the end than when the first half of hostile time was over.
MAX_GROWTH = 1.1
# Of a plain client's prompts, which stay below the model's length.
TOKENS_PER_PROMPT = 2500

OWN = "<pml><schema name='own{}' {}>{}</schema><prompt schema='own{}'>{}</prompt></pml>"


def modules(number: int, text: str = "x") -> str:
    return "".join(f"<module name='m{i}'>{text}</module>" for i in range(number))


def worst(number: int) -> list[dict[str, Any]]:
    """Requests of a client's round, each of text that is not remembered."""
    unknown = "".join(f"<m{i}x/>" for i in range(100))
    included = "".join(f"<m{i}/>" for i in range(150))
    documents = [
        OWN.format(number, "", modules(1500), number, included),
        OWN.format(number, "encode='sequence'", modules(150), number, included),
        OWN.format(number, "", modules(1000), number, unknown),
        OWN.format(number, "", modules(8, f"{number} words " * 100), number, "<m0/><m1/>"),
        OWN.format(number, "", "<modul/>" * 20_000, number, ""),
        "<prompt schema='travel'><plan duration='" + "day " * 50_000 + "'/></prompt>",
    ]
    requests = [{"prompt": "Go", "pml": pml} for pml in documents]
    return [*requests, {"prompt": "word " * 1_000_000, "pml": "<prompt schema='travel'/>"}]


def plain(number: int, num_tokens: int) -> list[dict[str, Any]]:
    """Prompts of so many tokens, of which none is remembered."""
    prompts = []
    for done in range(0, num_tokens, TOKENS_PER_PROMPT):
        count = min(TOKENS_PER_PROMPT, num_tokens - done)
        prompts.append({"prompt": [100 + (number * 7919 + done + i) % 20_000 for i in range(count)]})
    return prompts


def send(client: httpx.Client, body: dict[str, Any]) -> tuple[int, int]:
    """A request's status, and the tokens that it had computed, encodings included.

    Raises:
        AssertionError: the server failed.
    """
    answer = client.post("/v1/completions", json={"model": "tiny", "max_tokens": 4, **body})
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        return answer.status_code, 0
    said = answer.json()
    report = said.get("prompt_cache")
    if report is None:
        return 200, said["usage"]["prompt_tokens"]
    return 200, sum(report[f"tokens_{what}"] for what in ("encoded", "new", "repaired"))


def one_client(url: str, end: float, first: int, num_tokens: int | None) -> list[tuple[int, int]]:
    """Rounds until the time (of `time.time`) is over; hostile ones where no number of tokens is given."""
    found: list[tuple[int, int]] = []
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for number in range(first, first + 10**6):
            for body in worst(number) if num_tokens is None else plain(number, num_tokens):
                if time.time() >= end:
                    return found
                found.append(send(client, body))
    return found


def load(url: str, end: float, num_tokens: int | None) -> list[tuple[int, int]]:
    """Eight clients; the statuses and tokens of all their requests."""
    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        firsts = [int(end) * 10**8 + number * 10**6 for number in range(NUM_CLIENTS)]
        clients = [threads.submit(one_client, url, end, first, num_tokens) for first in firsts]
        return list(chain.from_iterable(client.result() for client in clients))


def times(url: str, end: float, ask: Callable[[httpx.Client], httpx.Response]) -> list[float]:
    """Seconds of one client's requests, one every tenth of a second."""
    found = []
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        while time.time() < end:
            start = time.monotonic()
            assert ask(client).status_code == 200
            found.append(time.monotonic() - start)
            time.sleep(0.1)
    return found


@dataclass(frozen=True)
class Phase:
    """What was found in a third of the time: seconds of plain requests and of questions for health, what
    became of the eight clients' requests, and which part of the machine's processors was busy, and by the
    server."""

    plain: list[float]
    health: list[float]
    requests: list[tuple[int, int]]
    busy: float
    busy_by_server: float

    @property
    def p99(self) -> float:
        """Of plain requests, in seconds."""
        return float(np.quantile(self.plain, 0.99))

    def __str__(self) -> str:
        statuses = dict(Counter(status for status, _ in self.requests))
        return (
            f"plain p50 {np.median(self.plain):.3f} s, p99 {self.p99:.3f} s of {len(self.plain)};"
            f" health p99 {np.quantile(self.health, 0.99):.3f} s, worst {max(self.health):.3f} s"
            f" of {len(self.health)}; the eight: statuses {statuses},"
            f" {sum(tokens for _, tokens in self.requests)} tokens computed; processors {self.busy:.0%} busy,"
            f" {self.busy_by_server:.0%} by the server; load {os.getloadavg()[0]:.1f}"
        )


def run(server: Server, clients: ProcessPoolExecutor, seconds: float, num_tokens: int | None) -> Phase:
    """One phase beside eight clients."""
    start, end = time.time(), time.time() + seconds
    idle, used = psutil.cpu_times().idle, processor_seconds(server)
    body = {"model": "tiny", "prompt": "One plain question.", "max_tokens": 4}
    with ThreadPoolExecutor(2) as threads:
        requests = clients.submit(load, server.url, end, num_tokens)
        plain = threads.submit(
            times, server.url, end, lambda client: client.post("/v1/completions", json=body)
        )
        health = threads.submit(times, server.url, end, lambda client: client.get("/health"))
        found = plain.result(), health.result(), requests.result()
    available = (time.time() - start) * psutil.cpu_count()
    idle, used = psutil.cpu_times().idle - idle, processor_seconds(server) - used
    return Phase(*found, 1 - idle / available, used / available)


def processes_of(server: Server) -> list[psutil.Process]:
    """All processes of the server."""
    port = int(server.url.rpartition(":")[2])
    listening = {
        c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
    }
    (process,) = [psutil.Process(pid) for pid in listening if pid]
    return [process, *process.children(recursive=True)]


def memory_of(server: Server) -> int:
    """What all processes of the server hold, in bytes."""
    return sum(process.memory_info().rss for process in processes_of(server))


def processor_seconds(server: Server) -> float:
    """What all processes of the server have used of processors."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes_of(server)))


def test_hostile_clients_cost_others_no_more_than_plain_ones(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "travel.pml").write_text(TRAVEL)
    settings = ["--prompt-cache-config.schemas", f'["{tmp_path / "travel.pml"}"]']
    spawn = multiprocessing.get_context("spawn")
    with (
        serving(tiny_model, tmp_path / "log", *settings) as server,
        ProcessPoolExecutor(1, mp_context=spawn) as clients,
        httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client,
    ):
        print(f"\nload {os.getloadavg()} on {os.cpu_count()} processors")
        first = []
        for body in worst(0):
            start = time.monotonic()
            first.append((*send(client, body), round(time.monotonic() - start, 3)))
        num_tokens = sum(tokens for _, tokens, _ in first)
        print(f"a hostile round (status, tokens computed, seconds alone): {first}")
        print(f"its {num_tokens} tokens are those of a plain client's round as well")
        memory = [memory_of(server)]
        beside_plain = run(server, clients, SECONDS / 3, num_tokens)
        print(f"beside plain clients: {beside_plain}")
        memory.append(memory_of(server))
        beside_hostile = []
        for _ in range(2):
            beside_hostile.append(run(server, clients, SECONDS / 3, None))
            print(f"beside hostile clients: {beside_hostile[-1]}")
            memory.append(memory_of(server))
        print(f"memory at the start and after each: {[held >> 20 for held in memory]} MiB")
        print(f"load {os.getloadavg()}")
    p99 = max(phase.p99 for phase in beside_hostile)
    worst_health = max(max(phase.health) for phase in beside_hostile)
    assert p99 <= 2 * beside_plain.p99
    assert worst_health <= HEALTH_S
    assert memory[-1] <= MAX_GROWTH * memory[-2]
