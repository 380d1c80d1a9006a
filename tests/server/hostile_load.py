"""Eight clients that send the worst documents known, one that sends plain requests, one that asks for health.

Run by ``make soak ARGS=hostile``, on a machine that does nothing else, for ``SOAK_SECONDS``: a third of it
beside eight plain clients of as many tokens, the rest beside the hostile ones. Over loopback only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from tests.server.support import TRAVEL, Server, serving

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
NUM_CLIENTS = 8
HEALTH_S = 0.25
# How much more memory the API server may hold at the end than when the first third of hostile time was over.
MAX_GROWTH = 1.1

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


def plain(number: int) -> list[dict[str, Any]]:
    """As many tokens as the hostile requests have that are run."""
    return [{"prompt": f"{number} " + "word " * 1000}]


class Load:
    """Clients in threads until the time is over."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self._end = time.monotonic() + seconds
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()

    def clients(self, requests: Callable[[int], list[dict[str, Any]]]) -> None:
        """One client: whatever it is answered, it goes on."""
        with httpx.Client(base_url=self._server.url, timeout=600) as client:
            while time.monotonic() < self._end:
                with self._lock:
                    number = next(self._numbers)
                for body in requests(number):
                    answer = client.post("/v1/completions", json={"model": "tiny", "max_tokens": 4, **body})
                    assert answer.status_code < 500, answer.text

    def times(self, ask: Callable[[httpx.Client], httpx.Response]) -> list[float]:
        """Seconds of one client's requests, one every tenth of a second."""
        found = []
        with httpx.Client(base_url=self._server.url, timeout=600) as client:
            while time.monotonic() < self._end:
                start = time.monotonic()
                assert ask(client).status_code == 200
                found.append(time.monotonic() - start)
                time.sleep(0.1)
        return found


def run(
    server: Server, seconds: float, requests: Callable[[int], list[dict[str, Any]]]
) -> tuple[float, float]:
    """The 99th percentile of a plain request, and of a question for health, beside eight clients."""
    load = Load(server, seconds)
    body = {"model": "tiny", "prompt": "One plain question.", "max_tokens": 4}
    with ThreadPoolExecutor(NUM_CLIENTS + 2) as threads:
        clients = [threads.submit(load.clients, requests) for _ in range(NUM_CLIENTS)]
        asked = threads.submit(load.times, lambda client: client.post("/v1/completions", json=body))
        health = threads.submit(load.times, lambda client: client.get("/health"))
        found = asked.result(), health.result()
        for client in clients:
            client.result()
    return float(np.quantile(found[0], 0.99)), float(np.quantile(found[1], 0.99))


def memory_of(server: Server) -> int:
    """What the API server's process holds, in bytes."""
    port = int(server.url.rpartition(":")[2])
    listening = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid]
    return max(psutil.Process(pid).memory_info().rss for pid in set(listening) - {os.getpid()})


def test_hostile_clients_cost_others_no_more_than_plain_ones(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "travel.pml").write_text(TRAVEL)
    settings = ["--prompt-cache-config.schemas", f'["{tmp_path / "travel.pml"}"]']
    with serving(tiny_model, tmp_path / "log", *settings) as server:
        beside_plain, _ = run(server, SECONDS / 3, plain)
        beside_hostile, health = run(server, SECONDS / 3, worst)
        before = memory_of(server)
        second, _ = run(server, SECONDS / 3, worst)
        after = memory_of(server)
        print(
            f"plain p99 {beside_plain:.3f} s beside plain, {max(beside_hostile, second):.3f} s beside hostile"
            f" clients; health p99 {health:.3f} s; memory {before >> 20} then {after >> 20} MiB;"
            f" load {os.getloadavg()}"
        )
        assert max(beside_hostile, second) <= 2 * beside_plain
        assert health <= HEALTH_S
        assert after <= MAX_GROWTH * before
