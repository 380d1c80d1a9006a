"""Fixtures shared by all tests, and the marker that keeps engine tests out of `make check`."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports vLLM or Transformers: tests never report usage nor ask a model hub.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from demo.embedded_model import embedded_model_path
from tests.models import tiny_llama

# Where tests run in several processes, each has a core for its engines: vLLM would give all the same one.
CORES: Sequence[int] = sorted(os.sched_getaffinity(0))
MAX_PROCESSES = 4
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER.startswith("gw"):
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(CORES[int(WORKER[2:]) % len(CORES)]))

# No test fails for being slow. Continuous integration tries the same examples each time, so that a change
# fails by what it changed; everyone else's runs try new ones, and `--hypothesis-profile many` many of them.
settings.register_profile(
    "new",
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.register_profile("many", settings.get_profile("new"), max_examples=3000)
settings.load_profile("same" if os.environ.get("CI") else "new")

ENGINE_FOLDERS = ("engine", "offline", "server")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes of ``-n auto``: each may hold several engines, of a gigabyte or two."""
    return min(len(CORES), MAX_PROCESSES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything in `ENGINE_FOLDERS` is marked `engine`; other tests may carry the marker themselves."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(tests) and item.path.relative_to(tests).parts[0] in ENGINE_FOLDERS:
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in float32; also the tokenizer of tests that need no weights."""
    return embedded_model_path()


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The folder of a random three-layer Llama; see tests/models.py for variants."""
    return tiny_llama()
