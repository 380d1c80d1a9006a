"""A whole server is killed while it writes records, again and again; each time it serves from its folder.

Run by ``make soak ARGS=kill``, ``SOAK_KILLS`` (100) times: while members of a pool are registered and asked
for, all of the server's processes are killed, at a moment of their own. The server that starts next must know
every registration that was answered, with the text that was sent last; its answers are those of a server that
was never killed; and its log says nothing of what is broken.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.server.hostile_load import processes_of
from tests.server.support import Server, serving, tail
from tests.server.zipf_load import DESK, MAX_ERROR, MEMBERS, body_of, name_of, text_of

KILLS = int(os.environ.get("SOAK_KILLS", "100"))
NUM_MEMBERS, NUM_CLIENTS = 200, 3
# What is asked for after a restart, and compared with a server that was never killed.
PROMPTS, NUM_ASKED = 4, 3
# How long a server is asked before it is killed.
LEAST_S, MOST_S = 0.1, 3.0
SALT = "red"
# What a log never says: records are written whole, or not at all.
BROKEN = ("Traceback", "Prompt cache: record", "is damaged", "is not used", "cannot be used")


@dataclass
class Sent:
    """Which version of each member's text the server has confirmed, and which it may have taken besides."""

    confirmed: dict[int, int] = field(default_factory=dict)
    unanswered: dict[int, int] = field(default_factory=dict)


def settings_of(folder: Path | None) -> list[str]:
    """Room for few members in blocks and in memory, so that files are written and read."""
    config = {"host_gib": 0.003, "dir": str(folder), "disk_gib": 1.0} if folder else {}
    blocks = ["--block-size", "32", "--num-gpu-blocks-override", "240"]
    return [*blocks, "--prompt-cache-config", json.dumps(config)]


def register(server: Server, sent: Sent, versions: Iterator[int], seed: int) -> None:
    """Register members anew until the server is no more."""
    drawn = random.Random(seed)
    with suppress(httpx.TransportError), server.http() as client:
        while True:
            number, version = drawn.randrange(seed % NUM_CLIENTS, NUM_MEMBERS, NUM_CLIENTS), next(versions)
            sent.unanswered[number] = version
            answer = client.put(f"{MEMBERS}/{name_of(number)}", json={"text": text_of(number, version)})
            assert answer.status_code in (200, 201), answer.text
            sent.confirmed[number] = sent.unanswered.pop(number)


def ask(server: Server, seed: int) -> None:
    """Ask for members until the server is no more."""
    drawn = random.Random(seed)
    with suppress(httpx.TransportError), httpx.Client(base_url=server.url, timeout=60) as client:
        while True:
            body = body_of(drawn.sample(range(NUM_MEMBERS), 3), SALT)
            answer = client.post("/v1/completions", json=body)
            assert answer.status_code == 200 or "unknown module" in answer.text, answer.text


def kill_while_busy(server: Server, sent: Sent, versions: Iterator[int], seed: int) -> list[BaseException]:
    """Ask and register until the server is killed; what clients raised."""
    raised: list[BaseException] = []

    def guarded(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            raised.append(error)

    clients = [
        *((register, server, sent, versions, seed * NUM_CLIENTS + i) for i in range(NUM_CLIENTS)),
        *((ask, server, seed * NUM_CLIENTS + i) for i in range(NUM_CLIENTS)),
    ]
    first, *_ = processes_of(server)
    threads = [threading.Thread(target=guarded, args=client) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(random.Random(seed).uniform(LEAST_S, MOST_S))
    os.killpg(first.pid, signal.SIGKILL)  # the group is the server's own
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def check_members(server: Server, sent: Sent) -> dict[int, int]:
    """What was confirmed is there, as it was sent; which version of each member is, from now on.

    A member that is sent again as it is there is ``unchanged``. Where two versions may be there, the
    confirmed one is sent, and may not have been there.
    """
    known = {n: version for n in range(NUM_MEMBERS) if (version := sent.confirmed.get(n)) is not None}
    said = put_many(server, known)
    for number, status in said.items():
        if number not in sent.unanswered:
            assert status == "unchanged", f"{name_of(number)} is {status}: what was confirmed is lost"
        else:
            assert status in ("unchanged", "replaced"), f"{name_of(number)} is lost"
    return known


def put_many(server: Server, versions: dict[int, int]) -> dict[int, str]:
    """Send members; what became of each."""
    lines = [json.dumps({"name": name_of(n), "text": text_of(n, v)}) for n, v in versions.items()]
    with server.http() as client:
        answer = client.post(f"{MEMBERS}:batch", content="\n".join(lines).encode())
    assert answer.status_code == 200, answer.text
    statuses = [json.loads(line)["status"] for line in answer.text.splitlines()]
    return dict(zip(versions, statuses, strict=True))


def answers_of(server: Server, asked: list[list[int]]) -> list[dict[str, Any]]:
    """What is answered to some prompts."""
    found = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for numbers in asked:
            answer = client.post("/v1/completions", json=body_of(numbers, SALT))
            assert answer.status_code == 200, answer.text
            found.append(answer.json())
    return found


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same tokens, as likely."""
    one, other = (said["choices"][0]["logprobs"] for said in (found, expected))
    assert one["tokens"] == other["tokens"]
    pairs = zip(one["token_logprobs"], other["token_logprobs"], strict=True)
    assert max(abs(a - b) for a, b in pairs) < MAX_ERROR


def test_a_server_that_is_killed_serves_from_its_folder(tiny_model: Path, tmp_path: Path) -> None:
    sent, versions, folder = Sent(), itertools.count(1), tmp_path / "kept"
    loaded = encoded = 0
    with serving(tiny_model, tmp_path / "fresh.log", *settings_of(None)) as fresh:
        with fresh.http() as client:
            assert client.post("/schemas", content=DESK.encode()).status_code == 201
        for turn in range(KILLS + 1):
            log = tmp_path / f"{turn}.log"
            with serving(tiny_model, log, *settings_of(folder), may_end=True) as server:
                if turn == 0:
                    with server.http() as client:
                        assert client.post("/schemas", content=DESK.encode()).status_code == 201
                else:
                    drawn = random.Random(turn)
                    asked = [drawn.sample(sorted(sent.confirmed), NUM_ASKED) for _ in range(PROMPTS)]
                    there = check_members(server, sent)
                    sent.unanswered.clear()
                    put_many(fresh, {n: there[n] for numbers in asked for n in numbers})
                    answers = answers_of(server, asked), answers_of(fresh, asked)
                    for found, expected in zip(*answers, strict=True):
                        check_same(found, expected)
                        loaded += found["prompt_cache"]["modules_loaded"]
                        encoded += found["prompt_cache"]["modules_encoded"]
                if turn < KILLS:
                    raised = kill_while_busy(server, sent, versions, turn)
                    assert not raised, raised
                    print(".", end="", flush=True)
            said = log.read_text(errors="replace")
            assert not any(word in said for word in BROKEN), tail(log)
            log.unlink()
    print(
        f"\n{KILLS} kills, {next(versions) - 1} registrations sent; for {KILLS * PROMPTS} prompts over"
        f" {NUM_ASKED} members each after them {loaded} modules were loaded and {encoded} encoded"
    )
    assert loaded
