"""The README's quickstart as it stands: its blocks in order, in a fresh folder where `MODEL` is a model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.support import Server, stop, wait_until_ready
from tests.test_documents import Block, blocks

ROOT = Path(__file__).parents[2]
PORT = 8000
RIGHT = re.compile(r"June.*September", re.DOTALL)


class Folder:
    """A fresh folder, and what a shell in it has exported."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        (path / "MODEL").symlink_to(model)
        tools = str(Path(sys.executable).parent)
        self.environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def run(self, *command: str) -> str:
        """What a command writes."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, script: str, log: Path) -> subprocess.Popen[bytes]:
        """A shell with a script that goes on running."""
        with log.open("wb") as output:
            return subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.path,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def quickstart() -> list[Block]:
    """The blocks between the heading and the next one."""
    path = ROOT / "README.md"
    section = path.read_text(encoding="utf-8").partition("\n## Quickstart\n")[2].partition("\n## ")[0]
    return [block for block in blocks(path) if f"```{block.language}\n{block.text}```" in section]


@pytest.fixture(scope="module")
def folder(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("quickstart"), embedded_model)
    (schema,) = [block.text for block in quickstart() if block.language == "xml"]
    (name,) = re.findall(r"into a schema, `([\w.]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    (folder.path / name).write_text(schema)
    (serve,) = [block.text for block in quickstart() if "vllm serve" in block.text]
    folder.environment |= dict(re.findall(r"^export (\w+)=(\S+)", serve, re.MULTILINE))
    for number, block in enumerate(block for block in quickstart() if block.language == "python"):
        (folder.path / f"{number}.py").write_text(block.text)
    return folder


@pytest.fixture(scope="module")
def server(folder: Folder) -> Iterator[Server]:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT}, which the README's blocks use, is taken")
    (serve,) = [block.text for block in quickstart() if "vllm serve" in block.text]
    log = folder.path / "log"
    process = folder.start(serve, log)
    server = Server(f"http://127.0.0.1:{PORT}", log)
    try:
        wait_until_ready(server, process)
        yield server
    finally:
        stop(process)


@pytest.mark.timeout(600)
def test_the_server_answers_the_readme_s_question(folder: Folder, server: Server) -> None:
    answer, usage = folder.run(sys.executable, "0.py").rstrip().rsplit("\n", 1)
    assert RIGHT.search(answer), answer
    num_tokens, num_reused = map(int, usage.split())
    assert 20 < num_reused < num_tokens


@pytest.mark.timeout(600)
def test_the_examples_client_works_beside_it(folder: Folder, server: Server) -> None:
    said = folder.run(sys.executable, str(ROOT / "examples" / "client.py"))
    assert "registered travel" in said
    reused = [int(count) for count in re.findall(r"(\d+) reused", said)]
    assert len(reused) == 3 and reused[1] > 200 and reused[2] == 0
    assert "December" in said


@pytest.mark.timeout(600)
def test_marked_passages_are_reused_in_another_order(folder: Folder, server: Server) -> None:
    said = folder.run(sys.executable, str(ROOT / "examples" / "passages.py"))
    counts = [(int(all_of), int(reused)) for all_of, reused in re.findall(r"\[(\d+) .*, (\d+) reused", said)]
    assert len(counts) == 3 and counts[0][1] < 100
    assert counts[2][1] > 0.8 * counts[2][0]  # all three had been found before, each behind others


@pytest.mark.timeout(600)
def test_the_script_answers_without_a_server(folder: Folder) -> None:
    assert RIGHT.search(folder.run(sys.executable, "1.py"))
