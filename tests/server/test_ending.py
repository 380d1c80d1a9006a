"""The engine process is killed at every point of a server's life: the server ends, and so does every wait."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server.support import (
    ENVIRONMENT,
    PROMPT,
    TRAVEL,
    Server,
    free_port,
    start,
    stop,
    tail,
    wait_until_ready,
)

END_S = 10.0
WORDS = "All of this is new text that somebody has to encode. "
MANY = [
    f"<schema name='s{number}'>"
    + "".join(f"<module name='m{module}'>{number} {WORDS * 12}</module>" for module in range(16))
    + "</schema>"
    for number in range(12)
]
CHAT = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Go"}],
    "max_tokens": 2000,
    "ignore_eos": True,
}
COMPOSED = CHAT | {"pml": PROMPT}
STREAMED = {"stream": True}


@contextmanager
def started(model: Path, folder: Path, *schemas: str) -> Iterator[tuple[Server, subprocess.Popen[bytes]]]:
    """A server that may die, and its process; not ready yet."""
    for number, schema in enumerate(schemas):
        (folder / f"{number:02}.pml").write_text(schema)
    port, log = free_port(), folder / "log"
    settings = ["--enable-prompt-cache", "--prompt-cache-config.schemas", f'["{folder}"]']
    process = start(model, log, *settings, "--host", "127.0.0.1", "--port", str(port))
    try:
        yield Server(f"http://127.0.0.1:{port}", log), process
    finally:
        stop(process)


def engine_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The engine's process, as soon as there is one."""
    return eventually(
        process,
        lambda: next((p for p in psutil.Process(process.pid).children() if "EngineCore" in name(p)), None),
    )


def name(process: psutil.Process) -> str:
    """What a process calls itself; nothing once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def eventually(process: subprocess.Popen[bytes], look: Callable[[], Any]) -> Any:
    """What `look` finds while the server runs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := look():
            return found
        assert process.poll() is None, "the server ended too early"
        time.sleep(0.05)
    raise AssertionError("not seen in two minutes")


def test_it_dies_while_the_model_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    with started(tiny_model, tmp_path, TRAVEL) as (_, process):
        engine_of(process).kill()
        assert process.wait(END_S) != 0


def test_it_dies_while_schemas_are_encoded(tiny_model: Path, tmp_path: Path) -> None:
    with started(tiny_model, tmp_path, *MANY) as (server, process):
        eventually(process, lambda: "Prompt cache: schema 's0'" in server.log.read_text(errors="replace"))
        engine = engine_of(process)
        engine.suspend()  # whatever the front end asks next is never answered
        time.sleep(1)
        engine.kill()
        assert process.wait(END_S) == 1
        (line,) = [line for line in tail(server.log).splitlines() if "does not start" in line]
        assert "the engine ended while schemas were encoded" in line
        assert "Application startup complete" not in server.log.read_text(errors="replace")


def test_it_dies_while_nobody_asks_for_anything(tiny_model: Path, tmp_path: Path) -> None:
    with started(tiny_model, tmp_path, TRAVEL) as (server, process), httpx.Client() as client:
        wait_until_ready(server, process)
        assert client.get(f"{server.url}/health").status_code == 200  # and the connection stays open
        engine_of(process).kill()
        process.wait(END_S)


# What waits for the engine when it dies: method, path, body.
CALLS: list[tuple[str, str, Any]] = [
    ("GET", "/v1/prompt_cache/stats", None),
    ("GET", "/v1/prompt_cache/schemas/travel", None),
    ("POST", "/v1/prompt_cache/schemas", {"pml": "<schema name='new'>x</schema>", "pin": True}),
    ("POST", "/v1/prompt_cache/schemas/travel/warm", {}),
    ("POST", "/v1/prompt_cache/schemas/travel/pin", {}),
    ("POST", "/v1/prompt_cache/schemas/travel/unpin", {}),
    ("DELETE", "/v1/prompt_cache/schemas/other", None),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/chat/completions", COMPOSED),
    ("POST", "/v1/completions", {"model": "tiny", "prompt": "Go", "pml": PROMPT}),
]


def test_it_dies_while_clients_wait(tiny_model: Path, tmp_path: Path) -> None:
    with (
        started(tiny_model, tmp_path, TRAVEL, "<schema name='other'>x</schema>") as (server, process),
        ThreadPoolExecutor(32) as threads,
        half_a_body(server) as unfinished,
    ):
        wait_until_ready(server, process)
        silent = [unread_stream(server, body | STREAMED) for body in (CHAT, COMPOSED)]
        begun = [threading.Event(), threading.Event()]
        streams = [
            threads.submit(stream, server, body | STREAMED, event)
            for body, event in zip((CHAT, COMPOSED), begun, strict=True)
        ]
        assert all(event.wait(60) for event in begun)
        engine = engine_of(process)
        engine.suspend()
        unfinished.begin()
        calls = [threads.submit(ask, server, *call) for call in CALLS]
        time.sleep(2)
        assert not any(call.done() for call in calls), [call.result() for call in calls if call.done()]
        engine.kill()
        process.wait(END_S)
        answers = {CALLS[i][:2]: end_of(call) for i, call in enumerate(calls)}
        assert set(answers.values()) <= {503, "closed"}, answers
        assert answers["GET", "/v1/prompt_cache/stats"] == 503
        for lines in map(end_of, streams):
            assert lines[0].startswith("data: ")
            assert "error" in json.loads(lines[-2].removeprefix("data: ")) or lines[-1] == "closed"
        for connection in silent:
            connection.close()


def end_of(future: Future[Any]) -> Any:
    """What a client has, now that the server has ended."""
    return future.result(2)


def ask(server: Server, method: str, path: str, body: Any) -> int | str:
    """A request's status, or that its connection was closed."""
    try:
        return httpx.request(method, f"{server.url}{path}", json=body, timeout=60).status_code
    except httpx.TransportError:
        return "closed"


def stream(server: Server, body: Any, begun: threading.Event) -> list[str]:
    """All lines of a stream, and how it ended."""
    lines = []
    try:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            for line in filter(None, answer.iter_lines()):
                begun.set()
                lines.append(line)
    except httpx.TransportError:
        lines.append("closed")
    return lines


def connect(server: Server) -> socket.socket:
    """A connection with as little room for what it does not read as there can be."""
    port = int(server.url.rpartition(":")[2])
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(("127.0.0.1", port))
    return connection


def unread_stream(server: Server, body: Any) -> socket.socket:
    """A stream of which nothing is ever read."""
    connection, content = connect(server), json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


class HalfABody:
    """A registration that never arrives whole."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connection: socket.socket | None = None

    def begin(self) -> None:
        """Send the first half."""
        self.connection = connect(self._server)
        head = "POST /v1/prompt_cache/schemas HTTP/1.1\r\nHost: x\r\nContent-Type: application/xml\r\n"
        self.connection.sendall(f"{head}Content-Length: 1000\r\n\r\n<schema".encode())


@contextmanager
def half_a_body(server: Server) -> Iterator[HalfABody]:
    """A registration that never arrives whole, and its end."""
    body = HalfABody(server)
    try:
        yield body
    finally:
        if body.connection is not None:
            body.connection.close()


def test_the_server_is_told_to_end(tiny_model: Path, tmp_path: Path) -> None:
    """A client that neither sends nor reads keeps no server alive."""
    with started(tiny_model, tmp_path, TRAVEL) as (server, process), half_a_body(server) as unfinished:
        wait_until_ready(server, process)
        unfinished.begin()
        silent = unread_stream(server, COMPOSED | STREAMED)
        time.sleep(1)
        process.terminate()
        process.wait(END_S)
        silent.close()


SCRIPT = """
import sys, psutil
from vllm import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm_promptcache import LLM

if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=2**26)
    llm.add_schema("<schema name='s'>a b c</schema>")
    (engine,) = [p for p in psutil.Process().children() if "EngineCore" in " ".join(p.cmdline())]
    engine.suspend()
    import threading
    threading.Timer(1, engine.kill).start()
    for call in (llm.prompt_cache_stats, lambda: llm.generate_pml("<prompt schema='s'/>", prompt="x")):
        try:
            call()
        except EngineDeadError:
            print("ended", flush=True)
"""


def test_a_script_is_told_as_well(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tiny_model)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("ended") == 2, done.stdout + done.stderr
