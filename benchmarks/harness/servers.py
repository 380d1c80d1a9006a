"""vLLM's OpenAI-compatible server as a process of its own, with the plugin on, off or not installed."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.settings import RESULTS, Settings

MODEL_NAME = "benchmarked"
START_TIMEOUT_S = 900
STOP_TIMEOUT_S = 30
# For a second after their last step vLLM's workers look for the next one without a pause (SpinCondition).
REST_S = 1.5
ENTRY_POINT = "vllm.entrypoints.openai.api_server"


class ServerError(RuntimeError):
    """A server did not start, died, or answered with an error; the message says which and why."""


class Plugin(enum.Enum):
    """How the plugin is there."""

    ON = "plugin on"
    OFF = "plugin off"
    ABSENT = "plugin not installed"


class Server:
    """A running server. Leave the ``with`` block to stop it; idle servers use no processor time."""

    def __init__(
        self,
        settings: Settings,
        plugin: Plugin,
        *arguments: str,
        name: str | None = None,
        checkout: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **changes: Any,
    ):
        """``arguments`` go to vLLM after those of the settings; ``changes`` are block_size, kv_gib. The
        plugin is that of a ``checkout`` where one is given, else the installed one."""
        self.name = name or plugin.value
        self.plugin = plugin
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = server_arguments(settings, plugin, *arguments, **changes)
        self._checkout = checkout
        self._environment = dict(environment or {})
        self._cleanup = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        folder = RESULTS / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"\W+", "-", self.name)
        self.log = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{slug}-{self.port}.log"

    def __enter__(self) -> Server:
        interpreter = [sys.executable]
        environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
        environment |= self._environment
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
        # Servers that are asked in turn may wait for longer than its 5 s between two requests.
        environment["VLLM_HTTP_TIMEOUT_KEEP_ALIVE"] = "600"
        # A folder of its own: `python -m` puts the current one on the module path.
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-server-"))
        if self.plugin is Plugin.ABSENT:
            site = self._cleanup.enter_context(site_without_plugin())
            interpreter.append("-S")
            environment["PYTHONPATH"] = site
        elif self._checkout is not None:
            environment["PYTHONPATH"] = str(self._checkout)
        command = [*interpreter, "-m", ENTRY_POINT, "--port", str(self.port), *self.arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < START_TIMEOUT_S:
            self.check_alive()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        raise ServerError(f"{self.name} was not ready after {START_TIMEOUT_S} s; see {self.log}")

    def check_alive(self) -> None:
        """Raise ServerError with the end of its log if the process has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise ServerError(f"{self.name} ended with {self._process.returncode}; {self.log}:\n{tail}")

    def stop(self) -> None:
        """End the server and the processes it started."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
            # Whatever is left of the session that this class opened.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._cleanup.close()

    def call(self, method: str, path: str, body: Any = None, timeout_s: float = 600) -> Any:
        """An untimed call: the answer's JSON, or None where there is none.

        Raises:
            ServerError: the status is not 2xx; has the server's words.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            words = error.read().decode(errors="replace")[:2000]
            raise ServerError(f"{self.name}: {method} {path} answers {error.code}: {words}") from None
        except OSError as error:
            self.check_alive()
            raise ServerError(f"{self.name}: {method} {path}: {error}") from error
        return json.loads(text) if text.strip() else None

    def register(self, schema: str) -> Any:
        """Register a schema, given in PML; its modules are encoded when first asked for."""
        return self.call("POST", "/v1/prompt_cache/schemas", {"pml": schema})

    def unregister(self, name: str) -> None:
        """Forget a schema."""
        self.call("DELETE", f"/v1/prompt_cache/schemas/{name}")

    def forget_states(self) -> None:
        """Drop all that is cached, modules too (vLLM's /reset_prefix_cache)."""
        self.call("POST", "/reset_prefix_cache")

    def block_size(self) -> int:
        """The KV cache's block size, as the server says."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            found = re.search(r'cache_config_info{.*?\bblock_size="(\d+)"', answer.read().decode())
        if found is None:
            raise ServerError(f"{self.name} does not say its block size")
        return int(found[1])

    def prompt_tokens(self) -> tuple[int, int]:
        """Of all prompts so far, the tokens that were cached, and all."""
        names = ("vllm:prompt_tokens_cached_total", "vllm:prompt_tokens_total")
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        cached, total = (
            sum(
                float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
            )
            for name in names
        )
        return int(cached), int(total)

    def memory_bytes(self) -> int:
        """What the server's processes hold of memory; what several share counts once (PSS)."""
        import psutil

        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return sum(process.memory_full_info().pss for process in (first, *first.children(recursive=True)))

    def describe(self) -> dict[str, Any]:
        """What was started, for the result."""
        return {"name": self.name, "arguments": self.arguments, "block_size": self.block_size()}


def let_others_rest() -> None:
    """Wait until servers that were just asked leave the processors to the next one."""
    time.sleep(REST_S)


def server_arguments(
    settings: Settings,
    plugin: Plugin,
    *arguments: str,
    block_size: int | None = None,
    kv_gib: float | None = None,
) -> list[str]:
    """The server's command line after the port."""
    size = block_size or settings.block_size
    gib = kv_gib or settings.kv_gib
    made = ["--model", settings.model, "--served-model-name", MODEL_NAME, "--dtype", settings.dtype]
    made += ["--max-model-len", str(settings.max_model_len), "--kv-cache-memory-bytes", str(int(gib * 2**30))]
    # All servers of a benchmark take prompts in the same pieces.
    made += ["--max-num-seqs", "64", "--max-num-batched-tokens", "8192", "--enable-prompt-tokens-details"]
    made += ["--no-enable-log-requests", "--disable-uvicorn-access-log"]
    if settings.overrides_model_len:
        made += ["--hf-overrides", json.dumps({"max_position_embeddings": settings.max_model_len})]
    if not settings.compiled:
        made.append("--enforce-eager")
    if size is not None:
        made += ["--block-size", str(size)]
    if plugin is Plugin.ON:
        made.append("--enable-prompt-cache")
    return [*made, *settings.server_arguments, *arguments]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def site_without_plugin() -> Iterator[str]:
    """A folder of links to everything that is installed but this plugin.

    Used with ``python -S``, so that no .pth file of the environment brings the plugin back.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-site-") as folder:
        for site in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
            for entry in Path(site).iterdir():
                link = Path(folder, entry.name)
                if "vllm_promptcache" not in entry.name and not link.exists():
                    link.symlink_to(entry)
        _check_absent(folder)
        yield folder


def _check_absent(site: str) -> None:
    """Raises ServerError if a Python that sees only ``site`` still finds the plugin."""
    code = (
        "import importlib.util, importlib.metadata as m; "
        "found = [e.name for e in m.entry_points(group='vllm.general_plugins')]; "
        "assert 'prompt_cache' not in found, found; "
        "assert importlib.util.find_spec('vllm_promptcache') is None; "
        "assert importlib.util.find_spec('vllm') is not None"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": site},
        cwd=site,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ServerError(f"the plugin cannot be hidden: {done.stderr.strip()}")
