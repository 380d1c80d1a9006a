"""Two engines behind two API servers, over real HTTP."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.support import MESSAGES, PROMPT, SERVE, TRAVEL, Server, serving

# Each new connection goes to one of the API servers, as the kernel has it.
CONNECTIONS = 16


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("data-parallel") / "log"
    folder = tmp_path_factory.mktemp("kept")
    arguments = ["--data-parallel-size", "2", "--api-server-count", "2", "--max-num-seqs", "4"]
    arguments += ["--prompt-cache-config.dir", str(folder)]
    with serving(tiny_model, log, *arguments, command=SERVE, may_end=True) as server:
        yield server
    # Each engine keeps records of its own.
    assert {path.name for path in folder.glob("records*")} == {"records", "records-1"}


def every(server: Server, method: str, path: str) -> list[httpx.Response]:
    """Answers over so many connections that each API server gives some."""
    found = []
    for _ in range(CONNECTIONS):
        with server.http() as http:
            found.append(http.request(method, path))
    return found


def test_a_schema_is_known_to_all_api_servers_at_once(server: Server) -> None:
    with server.http() as http:
        assert http.post("/schemas?pin=true", content=TRAVEL).status_code == 201
    answers = every(server, "GET", "/schemas/travel")
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["digest"] for answer in answers}) == 1
    with server.http() as http:
        assert http.post("/schemas?pin=true", content=TRAVEL).status_code == 200


def test_pins_reach_every_engine(server: Server) -> None:
    stats = every(server, "GET", "/stats")[0].json()
    engines = stats["engines"]
    assert len(engines) == 2
    assert engines[0]["blocks_pinned"] == engines[1]["blocks_pinned"] > 0
    assert stats["blocks_pinned"] == 2 * engines[0]["blocks_pinned"]


def test_all_answers_are_the_same_and_come_from_modules(server: Server) -> None:
    found = set()
    for _ in range(CONNECTIONS):
        answer = server.openai().chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=8, extra_body={"pml": PROMPT}
        )
        assert answer.usage and answer.usage.prompt_tokens_details
        assert (answer.usage.prompt_tokens_details.cached_tokens or 0) > 300
        found.add(answer.choices[0].message.content)
    assert len(found) == 1


def test_an_unpinned_schema_lies_where_its_requests_go(server: Server) -> None:
    """Requests with the same modules go to the engine that has them, whichever API server they come to."""
    schema = TRAVEL.replace('name="travel"', 'name="roaming"').replace("Be brief", "Be kind")
    with server.http() as http:
        assert http.post("/schemas", content=schema).status_code == 201
    encoded = 0
    for _ in range(CONNECTIONS):
        answer = server.openai().chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=0,
            max_tokens=1,
            extra_body={"pml": PROMPT.replace("travel", "roaming")},
        )
        encoded += (answer.model_extra or {})["prompt_cache"]["modules_encoded"] > 0
    assert encoded == 1


def test_what_one_removes_is_gone_in_all(server: Server) -> None:
    with server.http() as http:
        assert http.delete("/schemas/travel").status_code == 200
    assert {answer.status_code for answer in every(server, "GET", "/schemas/travel")} == {404}
    stats = every(server, "GET", "/stats")[0].json()
    assert [engine["blocks_pinned"] for engine in stats["engines"]] == [0, 0]


def api_servers(server: Server) -> list[int]:
    """The process IDs of a server's API servers."""
    log = server.log.read_text(errors="replace")
    return sorted({int(found) for found in re.findall(r"\(ApiServer_\d+ pid=(\d+)\)", log)})


def test_an_api_server_that_is_killed_leaves_nobody_waiting(server: Server) -> None:
    """vLLM ends a server of which a part has died: clients have an answer or a closed connection."""
    first, _ = api_servers(server)

    def ask() -> int:
        with server.http() as http:
            try:
                return http.get("/stats").status_code
            except httpx.TransportError:
                return 0

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        asked = [pool.submit(ask) for _ in range(CONNECTIONS)]
        os.kill(first, signal.SIGKILL)
        asked += [pool.submit(ask) for _ in range(CONNECTIONS)]
        assert {each.result(60) for each in asked} <= {200, 503, 0}
    deadline = time.monotonic() + 60
    while ask():
        assert time.monotonic() < deadline, "the server goes on with a part of it dead"
        time.sleep(0.2)
