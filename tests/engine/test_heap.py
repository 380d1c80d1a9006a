"""What a CPU worker's forward passes free stays with it. In processes of their own: it is set once."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Faults of ten passes that each take 64 MiB in pieces, and free them.
PASSES = """
import resource, torch
from vllm_promptcache.engine.heap import keep_heap

assert keep_heap()

def forward():
    tensors = [torch.ones(16 << 20, dtype=torch.uint8) for _ in range(4)]
    return int(tensors[-1][0])

for _ in range(3):
    forward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    forward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults() -> int:
    run = [sys.executable, "-c", PASSES]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_pages_are_taken_once() -> None:
    """By itself glibc takes them with each pass, where pages are small."""
    assert num_faults() < 1_000


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_an_operator_s_setting_stays(name: str) -> None:
    code = "from vllm_promptcache.engine.heap import keep_heap; print(keep_heap())"
    run = subprocess.run(
        [sys.executable, "-c", code], env={name: ""}, check=True, capture_output=True, text=True
    )
    assert run.stdout == "False\n"
