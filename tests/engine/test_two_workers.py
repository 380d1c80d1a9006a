"""Two workers with half of the heads, or of the layers, each: every one captures and injects its own rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.oracle import Oracle
from tests.engine.two_workers import NUM_TOKENS, plans

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["tensor", "pipeline"])
def test_two_workers_agree_with_the_oracle(
    tiny_model: Path, oracle: Oracle, tmp_path: Path, kind: str
) -> None:
    cores = sorted(os.sched_getaffinity(0))
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.two_workers", str(tiny_model), str(tmp_path), kind],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert "ANSWERS" in lines, done.stdout[-3000:] + done.stderr[-3000:]
    answers = json.loads(lines["ANSWERS"])
    stats = json.loads(lines["STATS"])
    assert stats["loads"] > 0 and stats["records_on_disk"] == stats["records_in_memory"] > 0
    for rank in range(2):
        files = list(tmp_path.glob(f"records/*.{rank}-of-2.safetensors"))
        assert len(files) == stats["records_on_disk"]
    expected = plans(tiny_model)
    assert len(answers) == 2 * len(expected)  # cold and warm
    for answer, plan in zip(answers, [*expected, *expected], strict=True):
        tokens, logprobs = oracle(tiny_model, plan, NUM_TOKENS)
        assert answer["tokens"] == tokens
        assert answer["of modules"] == plan.num_cached_tokens
        for step, found in enumerate(answer["logprobs"]):
            assert all(abs(logprob - float(logprobs[step, token])) < 1e-3 for token, logprob in found)
