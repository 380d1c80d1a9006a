"""Starting: what is loaded before the server is ready, and what refuses the start."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from tests.server.support import ENVIRONMENT, Server, serving, start, stop, tail
from vllm_promptcache.compat import UnsupportedError
from vllm_promptcache.compat import server as compat_server
from vllm_promptcache.server.install import refuse_unsupported

SMALL = f"<schema name='small'>{'A few words. ' * 40}</schema>"
LARGE = f"<schema name='large'><module name='m'>{'Many more words. ' * 400}</module></schema>"
HUGE = f"<schema name='huge'>Own words.<module name='m'>{'Ever more words. ' * 800}</module></schema>"


@pytest.fixture(scope="module")
def narrow(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with an API key, no schemas in requests, 51 blocks, and 5 of them for pins."""
    folder = tmp_path_factory.mktemp("narrow")
    for number, text in enumerate((SMALL, LARGE, HUGE)):
        (folder / f"{number}.xml").write_text(text)
    config = f'{{"schemas": ["{folder}"], "pin_fraction": 0.1, "allow_request_schemas": false,'
    config += ' "allow_management": true}'
    settings = ["--prompt-cache-config", config, "--num-gpu-blocks-override", "52"]
    with serving(tiny_model, folder / "log", *settings, api_key="secret") as server:
        yield server


def test_schemas_are_encoded_before_the_server_is_ready(narrow: Server) -> None:
    log = narrow.log.read_text(errors="replace")
    assert log.index("Prompt cache: schema 'small'") < log.index("Application startup complete")
    with narrow.http() as http:
        small = http.get("/schemas/small").json()
        assert small["pinned"] and small["modules"][0]["residency"] == "resident"
        assert http.get("/schemas/large").json()["pinned"] is False
        assert http.get("/stats").json()["units_encoding"] == 0
    assert "schema 'large' is served unpinned" in log


def test_a_schema_that_is_not_pinned_is_served(narrow: Server) -> None:
    with narrow.openai() as client:
        for encoded in (2, 0):
            answer: Any = client.completions.create(
                model="tiny",
                prompt="Go",
                max_tokens=2,
                extra_body={"pml": "<prompt schema='large'><m/></prompt>"},
            )
            # The schema has no text of its own.
            assert answer.prompt_cache["modules_encoded"] == min(encoded, 1)


def test_pinning_beyond_the_limit_is_refused(narrow: Server) -> None:
    with narrow.http() as http:
        answer = http.post("/schemas/large/pin")
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (507, "InsufficientStorageError")
        assert "pin_fraction" in error["message"]


def test_what_there_is_no_room_to_reuse_is_computed_and_says_so(narrow: Server) -> None:
    with narrow.openai() as client:
        answer: Any = client.completions.create(
            model="tiny", prompt="Go", max_tokens=1, extra_body={"pml": "<prompt schema='huge'><m/></prompt>"}
        )
    assert answer.prompt_cache["no_room"] == 1
    assert answer.prompt_cache["tokens_new"] == answer.usage.prompt_tokens > 3000


def test_schemas_from_requests_are_forbidden(narrow: Server) -> None:
    pml = "<pml><schema name='own'>x</schema><prompt schema='own'/></pml>"
    with narrow.openai() as client, pytest.raises(openai.PermissionDeniedError, match="no schemas"):
        client.completions.create(model="tiny", prompt="Go", extra_body={"pml": pml})
    with narrow.http() as http:  # the operator still manages them
        created = http.post("/schemas", json={"pml": "<schema name='own'>x</schema>"})
        assert (created.status_code, http.delete("/schemas/own").status_code) == (201, 200)


def test_routes_need_the_api_key(narrow: Server) -> None:
    for method, path in [
        ("GET", "/schemas"),
        ("POST", "/schemas"),
        ("GET", "/schemas/small"),
        ("DELETE", "/schemas/small"),
        ("POST", "/schemas/small/pin"),
        ("POST", "/explain"),
        ("GET", "/stats"),
    ]:
        answer = httpx.request(method, f"{narrow.url}/v1/prompt_cache{path}", timeout=60)
        assert answer.status_code == 401, (method, path)
    with narrow.http(api_key="wrong") as http:
        assert http.get("/schemas").status_code == 401


def test_wrong_schema_files_refuse_the_start(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "1.pml").write_text("<schema name='s'><module/></schema>")
    (tmp_path / "2.pml").write_text("<schema name='t'>\n<modul name='m'/></schema>")
    log = tmp_path / "log"
    process = start(
        tiny_model, log, "--enable-prompt-cache", "--prompt-cache-config.schemas", f'["{tmp_path}"]'
    )
    try:
        assert process.wait(200) != 0
    finally:
        stop(process)
    output = tail(log)
    assert "1.pml:1:18: schema[s]/module: attribute 'name' is missing" in output
    assert "2.pml:2:1: schema[t]/modul: unknown element 'modul'" in output


@pytest.mark.parametrize(
    ("num_servers", "data_parallel", "serves", "what"),
    [
        (0, 1, True, "front end"),
        (1, 2, False, "data parallelism in a script"),
        (2, 1, True, None),
        (2, 2, True, None),
        (1, 1, False, None),
    ],
)
def test_what_requests_would_not_reach_is_refused(
    monkeypatch: pytest.MonkeyPatch, num_servers: int, data_parallel: int, serves: bool, what: str | None
) -> None:
    monkeypatch.setattr(compat_server, "num_api_servers", lambda config: num_servers)
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=data_parallel))
    if what is None:
        refuse_unsupported(config, serves=serves)
        return
    with pytest.raises(UnsupportedError, match=what):
        refuse_unsupported(config, serves=serves)


UNTOUCHED = """
import sys
from vllm.entrypoints.generate import api_router
from vllm.entrypoints.launchers import app
from vllm.v1.core.sched import scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import RequestState
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.completion import serving as completion

owners = (api_router, app, scheduler, EngineCore, InputProcessor, RequestState, chat, completion)
before = [dict(vars(owner)) for owner in owners]

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = make_arg_parser(FlexibleArgumentParser())
arguments = parser.parse_args(["--model", sys.argv[1], *sys.argv[2:]])
assert hasattr(arguments, "enable_prompt_cache")
config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
untouched = [dict(vars(owner)) == names for owner, names in zip(owners, before)]
loaded = [name for name in sys.modules if name.startswith("vllm_promptcache.")]
print(config.scheduler_config.scheduler_cls, config.parallel_config.worker_cls, untouched, sorted(loaded))
assert all(untouched) == ("--enable-prompt-cache" not in sys.argv)
if all(untouched):
    assert config.scheduler_config.scheduler_cls is None
    assert "prompt" not in str(config.parallel_config.worker_cls).lower()
    parts = {"arguments", "compat", "config", "contract", "errors", "plugin"}
    assert {name.split(".")[1] for name in loaded} <= parts, loaded
"""


@pytest.mark.parametrize("flags", [[], ["--enable-prompt-cache"]])
def test_without_the_flag_nothing_is_touched(tiny_model: Path, flags: list[str]) -> None:
    command = [sys.executable, "-c", UNTOUCHED, str(tiny_model), "--dtype", "float32", *flags]
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)
