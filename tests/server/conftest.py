"""One server for most tests of this folder, and one with everything narrow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.support import TRAVEL, Server, serving


@pytest.fixture(scope="session")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the travel schema loaded, and tools enabled."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "travel.pml").write_text(TRAVEL)
    settings = ["--prompt-cache-config.schemas", f'["{folder}"]']
    settings += ["--prompt-cache-config.max_document_bytes", "65536"]
    settings += ["--prompt-cache-config.max_schemas", "6"]
    settings += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-scale-out"]
    with serving(tiny_model, folder / "log", *settings) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture(autouse=True)
def no_block_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, the server still answers afterwards, and nothing is left running."""
    yield
    if "http" in request.fixturenames:
        stats: dict[str, Any] = request.getfixturevalue("http").get("/stats").json()
        assert stats["blocks_free"] + stats["blocks_modules"] == stats["blocks_total"]
