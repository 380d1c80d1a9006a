"""Starting and ending a server, with a small program in its place."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from demo.errors import DemoError
from demo.machine import choose_port
from demo.model import KV_SPACE_VARIABLE, DemoModel
from demo.server import (
    Server,
    render_command,
    running_server,
    serve_command,
    serve_environment,
)
from tests.demo.processes import Mark

MODEL = DemoModel("name", "/some where/model", "float32", 4096, 1 << 30, 46080)

# A server with a child that outlives it unless it is ended too.
PROGRAM = """
import http.server, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", stubborn])
print("INFO Resolved architecture: LlamaForCausalLM", flush=True)
print("INFO Resolved architecture: LlamaForCausalLM", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("INFO Prompt cache: 3 modules resident, 2 of 9 blocks pinned.", flush=True)
server.serve_forever()
"""
FAILING = "import sys; print('all is well'); print('ERROR: no such model', flush=True); sys.exit(3)"


def run(program: str, port: int) -> list[str]:
    return [sys.executable, "-c", program, str(port)]


def test_a_server_is_started_watched_and_ended_with_its_children(tmp_path: Path) -> None:
    mark, port, said = Mark(), choose_port(None), []
    with running_server(run(PROGRAM, port), mark.environment, port, tmp_path / "log") as server:
        server.wait_until_ready(said.append, timeout_s=30)
        assert len(mark.processes()) == 2
        server.require_alive()
    assert said == [
        "vLLM knows the model: LlamaForCausalLM",
        "3 modules are encoded, in 2 pinned blocks",
    ]
    assert mark.wait_until_gone() == []


def test_an_interrupt_ends_the_server_too(tmp_path: Path) -> None:
    mark, port = Mark(), choose_port(None)

    def wait_for_ever() -> None:
        with running_server(run(PROGRAM, port), mark.environment, port, tmp_path / "log") as server:
            server.wait_until_ready(lambda _: None, timeout_s=30)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Event().wait(30)

    with pytest.raises(KeyboardInterrupt):
        wait_for_ever()
    assert mark.wait_until_gone() == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start_and_wait(command: list[str], log: Path, timeout_s: float) -> None:
    with running_server(command, os.environ, choose_port(None), log) as server:
        server.wait_until_ready(lambda _: None, timeout_s)


def test_a_server_that_ends_is_an_error_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"ended with status 3(.|\n)*all is well\n *ERROR: no such model"):
        start_and_wait(run(FAILING, 0), tmp_path / "log", 30)


def test_a_server_that_is_killed_is_an_error(tmp_path: Path) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(DemoError, match="killed by signal 9"):
        start_and_wait(run(program, 0), tmp_path / "log", 30)


def test_a_server_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="did not get ready within 1 s"):
        start_and_wait(run("import time; time.sleep(600)", 0), tmp_path / "log", 1)


def test_the_end_of_a_long_log_begins_with_its_first_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = [f"line {index}" for index in range(200)]
    lines[50] = "(EngineCore pid=1) ERROR 01-01 the cause"
    log.write_text("\n".join(lines))
    shown = [line.strip() for line in Server(None, 0, log).log_tail().splitlines()]  # type: ignore[arg-type]
    assert shown[0] == lines[50]
    assert shown[-1] == "line 199"
    assert "..." in shown
    assert len(shown) < 50


def test_the_command_is_what_a_user_would_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.server._vllm_command_works", lambda: True)
    command = serve_command(MODEL, 8000, [Path("/a schema.pml")])
    assert command[:3] == ["vllm", "serve", MODEL.path]
    assert command[-3:] == [
        "--enable-prompt-cache",
        "--prompt-cache-config",
        '{"schemas": ["/a schema.pml"]}',
    ]
    lines = render_command(command).splitlines()
    assert lines[0] == "  vllm serve '/some where/model' \\"
    assert lines[-1] == """      --prompt-cache-config '{"schemas": ["/a schema.pml"]}'"""


def test_the_module_is_run_where_the_command_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demo.server._vllm_command_works", lambda: False)
    command = serve_command(MODEL, 8000, [])
    expected = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL.path]
    assert command[:5] == expected


def test_the_server_keeps_its_files_in_the_given_folder(tmp_path: Path) -> None:
    environment = serve_environment(MODEL, tmp_path)
    assert environment["TMPDIR"] == str(tmp_path)
    assert environment["PATH"].startswith(str(Path(sys.executable).parent))
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(("folder", "expected"), [("/tmp/short", None), (f"/tmp/{'x' * 80}", "/tmp")])
def test_sockets_have_short_paths(folder: str, expected: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    assert serve_environment(MODEL, Path(folder)).get("VLLM_RPC_BASE_PATH") == expected


@pytest.mark.parametrize("on_cpu", [True, False])
def test_kv_space_is_said_to_cpu_servers(
    on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KV_SPACE_VARIABLE, raising=False)
    monkeypatch.setattr("demo.server.runs_on_cpu", lambda: on_cpu)
    assert serve_environment(MODEL, tmp_path).get(KV_SPACE_VARIABLE) == ("1" if on_cpu else None)
