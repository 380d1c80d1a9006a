"""Marks on the way of a request: a vLLM plugin that `timeline` loads into a server's processes.

It stands alone: a server's processes see this file and nothing else of the benchmarks. Each mark is a line
``NANOSECONDS NAME begin|end`` of a clock that the processes of a machine share, in a file for each process in
the folder that ``BENCHMARK_MARKS`` names.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

FOLDER = "BENCHMARK_MARKS"
SENT = "AsyncMPClient.add_request_async"
ADDED = "EngineCore.add_request"
SCHEDULED = "MultiprocExecutor.execute_model"
STEP = "GPUModelRunner.execute_model"
FORWARD = "GPUModelRunner._model_forward"
ATTENTION = "CPUAttentionBackendImpl.forward"
SAMPLED = "GPUModelRunner.sample_tokens"
# Where vLLM 0.32 has them. Coroutines are marked where they are called.
MARKED = {
    SENT: "vllm.v1.engine.core_client",
    ADDED: "vllm.v1.engine.core",
    SCHEDULED: "vllm.v1.executor.multiproc_executor",
    STEP: "vllm.v1.worker.gpu_model_runner",
    FORWARD: "vllm.v1.worker.gpu_model_runner",
    ATTENTION: "vllm.v1.attention.backends.cpu_attn",
    SAMPLED: "vllm.v1.worker.gpu_model_runner",
}


def register() -> None:
    """Called by vLLM in each of its processes (``vllm.general_plugins``), any number of times."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return
    for name, module in MARKED.items():
        class_name, method = name.split(".")
        owner = getattr(importlib.import_module(module), class_name)
        found = getattr(owner, method)
        if not hasattr(found, "marked"):
            setattr(owner, method, _marking(found, name, folder))


def _marking(method: Callable[..., Any], name: str, folder: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def marking(*args: Any, **kwargs: Any) -> Any:
        file = _file(folder, os.getpid())
        os.write(file, f"{time.monotonic_ns()} {name} begin\n".encode())
        try:
            return method(*args, **kwargs)
        finally:
            os.write(file, f"{time.monotonic_ns()} {name} end\n".encode())

    marking.marked = True  # type: ignore[attr-defined]
    return marking


@functools.cache
def _file(folder: str, process: int) -> int:
    return os.open(os.path.join(folder, f"{process}.marks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
