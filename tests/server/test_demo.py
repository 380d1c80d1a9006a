"""`python -m demo` as a user runs it, with a tiny model: it ends well, or is interrupted."""

import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.demo.processes import Mark

# Tiny models gain nothing from threads, and lose much where several processes share few cores.
SETTINGS = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "COLUMNS": "80", "LC_ALL": "C"}
COMMAND = [sys.executable, "-m", "demo", "--rounds", "1"]


def test_the_demo_ends_with_its_table_and_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    mark = Mark()
    environment = mark.environment | SETTINGS | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, "--model", str(tiny_model)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(passages|travel|packages) +(\d+) +(\d+) +[\d.]+ m?s ", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in rows] == ["passages", "travel", "packages"]
    for name, num_prompt_tokens, num_reused_tokens in rows:
        # Passages have the template's own system message before them, and a line break behind each.
        most = 60 if name == "passages" else 40
        assert 0 < int(num_prompt_tokens) - int(num_reused_tokens) < most
    assert done.stdout.count("  > ") == done.stdout.count(" reused; first token after ") == 12
    assert "\x1b" not in done.stdout
    assert mark.wait_until_gone() == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_ends_its_server(tiny_model: Path, tmp_path: Path) -> None:
    mark = Mark()
    environment = mark.environment | SETTINGS | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*COMMAND, "--model", str(tiny_model)], env=environment, stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        # By now there is an engine process besides the server's.
        for line in demo.stdout:
            if "the engine starts" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
    assert demo.returncode == 130
    assert "interrupted" in rest
    assert mark.wait_until_gone() == []
    assert list(tmp_path.iterdir()) == []
