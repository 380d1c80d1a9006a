"""An engine in a process of its own, for what cannot be seen from outside a server."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

from benchmarks.harness.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What ``function`` returns, run in a fresh process: engines leave memory behind."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args, **kwargs).result()


def make_engine(settings: Settings, *, composed: bool, **changes: Any) -> Any:
    """A ``vllm.LLM``, with the prompt cache if ``composed``, whose core runs in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # As vLLM's server has it: one core is left to everything else.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) - 1, 1)))
    arguments: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "enforce_eager": not settings.compiled,
        "kv_cache_memory_bytes": int(settings.kv_gib * 2**30),
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 128,
        "disable_log_stats": True,
    }
    if settings.block_size is not None:
        arguments["block_size"] = settings.block_size
    if settings.overrides_model_len:
        arguments["hf_overrides"] = {"max_position_embeddings": settings.max_model_len}
    arguments.update(changes)
    if composed:
        from vllm_promptcache import LLM

        return LLM(settings.model, **arguments)
    from vllm import LLM as PlainLLM

    return PlainLLM(settings.model, **arguments)


def one_layer_of(settings: Settings) -> dict[str, Any]:
    """Changes for `make_engine`: one layer of the model, of random weights."""
    overrides: dict[str, Any] = {"num_hidden_layers": 1}
    if settings.overrides_model_len:
        overrides["max_position_embeddings"] = settings.max_model_len
    return {"load_format": "dummy", "hf_overrides": overrides}


def core_of(llm: Any) -> Any:
    """The engine core: ``scheduler``, ``model_executor``."""
    return llm.llm_engine.engine_core.engine_core


def runner_of(llm: Any) -> Any:
    """The model runner of the only worker."""
    worker = core_of(llm).model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner
