"""Two tenants ask for 2,000 members of a pool, of which 200 fit, as often as Zipf's law says; some of their
requests hang up, and members are registered again meanwhile.

Run by ``make soak ARGS=zipf`` for ``SOAK_SECONDS``: no answer may fail, nothing may be left over (blocks,
host bytes, disk bytes, file handles, memory), and sampled answers have to be those of a server that has just
started and computed nothing else. Prints how often members were there, beside LRU and the offline optimum on
the same trace.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.eviction.traces import belady, hit_rate, least_recently_used
from tests.server.hostile_load import memory_of, processes_of
from tests.server.support import Server, serving

SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
NUM_CLIENTS = 4
NUM_MEMBERS, NUM_FITTING = 2000, 200
EXPONENT = 0.9
SALTS = ("red", "blue")
# Three layers of two heads of 32 numbers, keys and values, in float32.
BYTES_OF_TOKEN = 3 * 2 * 32 * 2 * 4
TOKENS_OF_MEMBER = 90
# Only these are registered again, and never sampled: which text a request met is not known.
CHANGING = 10
ABORTED = 12
SAMPLED = 25
MAX_SAMPLES = 40
# How much more memory at the end than when half of the time was over.
MAX_GROWTH = 1.1
MAX_MORE_HANDLES = 16
MAX_ERROR = 1e-3

DESK = """<schema name="desk">Answer from these passages, and from nothing else.
  <pool name="p" length="900"/></schema>"""
MEMBERS = "/schemas/desk/pools/p/modules"
WORDS = [
    "time",
    "people",
    "water",
    "house",
    "light",
    "city",
    "river",
    "music",
    "garden",
    "window",
    "table",
    "paper",
    "story",
    "road",
    "money",
]


def text_of(number: int, version: int = 0) -> str:
    """About ``TOKENS_OF_MEMBER`` tokens, other ones for each member and version."""
    drawn = random.Random(number * 1000 + version)
    return " ".join(drawn.choices(WORDS, k=TOKENS_OF_MEMBER))


def name_of(number: int) -> str:
    return f"m{number}"


@dataclass
class Load:
    """What clients have done, and what they were answered."""

    trace: list[tuple[str, ...]] = field(default_factory=list)
    num_asked: int = 0
    num_aborted: int = 0
    num_changed: int = 0
    members: int = 0
    loaded: int = 0
    encoded: int = 0
    samples: list[tuple[dict[str, Any], Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def body_of(numbers: list[int], salt: str) -> dict[str, Any]:
    uses = "".join(f'<use module="{name_of(number)}"/>' for number in numbers)
    pml = f'<prompt schema="desk"><p>{uses}</p> Which of them is it?</prompt>'
    return {
        "model": "tiny",
        "prompt": "",
        "pml": pml,
        "cache_salt": salt,
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": 3,
        "ignore_eos": True,
    }


def ask(server: Server, load: Load, end: float, seed: int) -> None:
    """One client."""
    drawn = random.Random(seed)
    weights = list(itertools.accumulate(1 / (rank + 1) ** EXPONENT for rank in range(NUM_MEMBERS)))
    with httpx.Client(base_url=server.url, timeout=120) as client:
        while time.time() < end:
            numbers = drawn.choices(range(NUM_MEMBERS), cum_weights=weights, k=drawn.randint(1, 4))
            numbers, salt = list(dict.fromkeys(numbers)), drawn.choice(SALTS)
            body = body_of(numbers, salt)
            with load.lock:
                load.num_asked += 1
                number = load.num_asked
            if number % ABORTED == 0:
                abort(client, body, numbers)
                load.num_aborted += 1
                continue
            answer = client.post("/v1/completions", json=body)
            if is_gone(answer, numbers):
                continue
            assert answer.status_code == 200, answer.text
            said = answer.json()
            report = said["prompt_cache"]
            with load.lock:
                load.trace.append(tuple(f"{salt}/{number}" for number in numbers))
                load.members += len(numbers)
                load.loaded += report["modules_loaded"]
                load.encoded += report["modules_encoded"]
                if number % SAMPLED == 0 and all(n % CHANGING for n in numbers):
                    load.samples.append((body, said["choices"][0]["logprobs"]))


def is_gone(answer: httpx.Response, numbers: list[int]) -> bool:
    """Whether a member is not there because `change` has deleted it, and not registered it again yet."""
    if answer.status_code != 400:
        return False
    answer.read()
    return any(f"unknown module '{name_of(n)}'" in answer.text for n in numbers if n % CHANGING == 0)


def abort(client: httpx.Client, body: dict[str, Any], numbers: list[int]) -> None:
    """Hang up, after the first word or before."""
    with client.stream("POST", "/v1/completions", json={**body, "stream": True, "max_tokens": 200}) as answer:
        if not is_gone(answer, numbers):
            assert answer.status_code == 200
            next(answer.iter_raw(), None)


def change(server: Server, load: Load, end: float) -> None:
    """Register members again, with other texts and times, pinned ones too."""
    drawn = random.Random(7)
    with server.http() as client:
        while time.time() < end:
            number = drawn.randrange(0, NUM_MEMBERS, CHANGING)
            path = f"{MEMBERS}/{name_of(number)}"
            load.num_changed += 1
            if load.num_changed % 5 == 0:
                assert client.delete(path).status_code == 200
            said = {"text": text_of(number, load.num_changed), "ttl": "2s", "pin": load.num_changed % 7 == 0}
            assert client.put(path, json=said).status_code in (200, 201)
            assert client.put(path, json={"text": text_of(number)}).status_code == 200
            if load.num_changed % 10 == 0:
                assert client.post("/schemas", content=DESK.encode()).status_code == 200
            time.sleep(0.05)


@dataclass(frozen=True)
class Held:
    """What a server holds: memory and handles of all its processes, and its folder's bytes and files."""

    memory: int
    handles: int
    disk_bytes: int
    files: int
    stats: dict[str, Any]

    def __str__(self) -> str:
        names = ("blocks_free", "blocks_modules", "bytes_in_memory", "bytes_on_disk", "evicted_for")
        counts = {name: self.stats[name] for name in names}
        return (
            f"{self.memory >> 20} MiB, {self.handles} handles, {self.files} files of {self.disk_bytes} bytes;"
            f" {counts}"
        )


def held_by(server: Server, folder: Path) -> Held:
    """What a server holds now."""
    handles = sum(process.num_fds() for process in processes_of(server))
    with server.http() as client:
        stats = client.get("/stats?tenants=true").json()
    sizes = [path.stat().st_size for path in folder.glob("records/*.safetensors")]
    return Held(memory_of(server), handles, sum(sizes), len(sizes), stats)


def register(server: Server) -> None:
    """The schema and all members."""
    lines = (json.dumps({"name": name_of(n), "text": text_of(n)}) for n in range(NUM_MEMBERS))
    with server.http() as client:
        assert client.post("/schemas", content=DESK.encode()).status_code in (200, 201)
        answer = client.post(f"{MEMBERS}:batch", content="\n".join(lines).encode())
        assert answer.status_code == 200
        assert answer.text.count('"registered"') == NUM_MEMBERS, answer.text[-500:]


def settings_of(host_gib: float, folder: Path | None = None) -> list[str]:
    """Blocks for about as many members as fit, beside one request of the model's length."""
    num_blocks = NUM_FITTING * (TOKENS_OF_MEMBER // 32) + 4096 // 32
    config: dict[str, Any] = {"host_gib": host_gib}
    if folder is not None:
        config |= {"dir": str(folder), "disk_gib": 2 * host_gib}
    return [
        *("--block-size", "32", "--num-gpu-blocks-override", str(num_blocks)),
        *("--prompt-cache-config", json.dumps(config)),
    ]


def run(server: Server, folder: Path) -> tuple[Load, list[Held]]:
    """The load, and what was held when half of the time was over, when all was, and in peace after that."""
    load, held = Load(), []
    with ThreadPoolExecutor(NUM_CLIENTS + 1) as threads:
        for half in range(2):
            end = time.time() + SECONDS / 2
            clients = [threads.submit(ask, server, load, end, 10 * half + i) for i in range(NUM_CLIENTS)]
            clients.append(threads.submit(change, server, load, end))
            for client in clients:
                client.result()
            held.append(held_by(server, folder))
            print(held[-1])
    time.sleep(6)  # pins end, and files are written
    return load, [*held, held_by(server, folder)]


def check_held(held: list[Held], host_bytes: float) -> None:
    """Nothing is left over."""
    half, _, last = held
    stats = last.stats
    assert stats["blocks_free"] + stats["blocks_modules"] == stats["blocks_total"]
    assert stats["units_encoding"] == stats["blocks_pinned"] == 0
    assert stats["bytes_in_memory"] <= host_bytes
    assert stats["bytes_on_disk"] <= 2 * host_bytes
    assert last.files == stats["records_on_disk"]
    assert last.disk_bytes <= 1.1 * stats["bytes_on_disk"] + 4096 * last.files
    assert last.handles <= half.handles + MAX_MORE_HANDLES
    assert last.memory <= MAX_GROWTH * half.memory
    for name in ("blocks_modules", "bytes_in_memory", "bytes_on_disk"):
        assert sum(tenant[name] for tenant in stats["tenants"].values()) == stats[name]


def report_hits(load: Load) -> None:
    """How often members were there, beside what others would have kept in the same room."""
    uses = [name for names in load.trace for name in names]
    tokens = dict.fromkeys(uses, TOKENS_OF_MEMBER)
    room = NUM_FITTING * TOKENS_OF_MEMBER
    kept = 1 - load.encoded / load.members
    print(
        f"{load.num_asked} requests ({load.num_aborted} hung up), {load.num_changed} registrations,"
        f" {load.members} members: {load.members - load.loaded - load.encoded} placed, {load.loaded} loaded,"
        f" {load.encoded} encoded"
    )
    others = {
        "LRU": least_recently_used(uses, tokens, room),
        "Greedy-Dual": hit_rate(uses, tokens, room),
        "the offline optimum (Belady)": belady(uses, tokens, room),
    }
    said = ", ".join(f"{name} {rate:.3f}" for name, rate in others.items())
    print(f"hit rate {kept:.3f}; with room for {NUM_FITTING} members, on the same trace: {said}")


def check_samples(server: Server, load: Load) -> None:
    """A server that has just started says the same."""
    chosen = random.Random(3).sample(load.samples, min(MAX_SAMPLES, len(load.samples)))
    assert chosen
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for body, found in chosen:
            fresh = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
            assert fresh["tokens"] == found["tokens"], body
            pairs = zip(fresh["token_logprobs"], found["token_logprobs"], strict=True)
            assert max(abs(a - b) for a, b in pairs) < MAX_ERROR, body
    print(f"{len(chosen)} sampled answers are a fresh server's")


def test_members_come_and_go(tiny_model: Path, tmp_path: Path) -> None:
    host_bytes = NUM_FITTING / 2 * TOKENS_OF_MEMBER * BYTES_OF_TOKEN
    host_gib, folder = host_bytes / 2**30, tmp_path / "kept"
    with serving(tiny_model, tmp_path / "log", *settings_of(host_gib, folder)) as server:
        print(f"\nload {os.getloadavg()} on {os.cpu_count()} processors, {SECONDS:.0f} s")
        register(server)
        load, held = run(server, folder)
        print(held[-1])
        report_hits(load)
        log = (tmp_path / "log").read_text(errors="replace")
        assert "Traceback" not in log, log[-5000:]
        check_held(held, host_bytes)
    with serving(tiny_model, tmp_path / "fresh.log", *settings_of(0.0)) as server:
        register(server)
        check_samples(server, load)
