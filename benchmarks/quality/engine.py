"""A vLLM engine with the prompt cache in this process, stepped by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.prompts import Prompt
from vllm_promptcache.blocks.wire import EXTRA_ARG


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is started with. ``block_size`` None is vLLM's default, ``threads`` None all cores."""

    model: str
    dtype: str = "float32"
    block_size: int | None = None
    max_model_len: int = 8192
    max_num_seqs: int = 64
    kv_gib: float = 2.0
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Ask:
    """A request: a prompt, and what is done behind it.

    With ``forced`` these tokens are written and their log-probabilities reported, else up to
    ``max_tokens`` are generated greedily. ``keep_as`` names the first token's distribution.
    """

    name: str
    prompt: Prompt
    forced: tuple[int, ...] = ()
    max_tokens: int = 32
    keep_as: str | None = None
    found_by_prefix: bool = True


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of a request: text, the generated tokens and their log-probabilities (of forced ones)."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    num_cached_tokens: int


class QualityEngine:
    """One engine. vLLM reads the environment when it is imported: make one before anything imports it."""

    def __init__(self, settings: EngineSettings):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        threads = settings.threads or len(os.sched_getaffinity(0))
        os.environ["OMP_NUM_THREADS"] = str(threads)

        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from benchmarks.quality.forcing import Forcing

        torch.set_num_threads(threads)
        given = {} if settings.block_size is None else {"block_size": settings.block_size}
        arguments = EngineArgs(
            model=settings.model,
            dtype=settings.dtype,  # type: ignore[arg-type]
            enforce_eager=True,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_memory_bytes=int(settings.kv_gib * 2**30),
            async_scheduling=False,
            logits_processors=[Forcing],
            additional_config={"prompt_cache": {}},
            disable_log_stats=True,
            **given,  # type: ignore[arg-type]
        )
        self.settings = settings
        self._first_tokens = Forcing.first_tokens
        self._engine = LLMEngine.from_engine_args(arguments)

    def ask(self, asks: Iterable[Ask]) -> dict[str, Answer]:
        """Run requests together; their answers by name."""
        for ask in asks:
            self._add(ask)
        answers: dict[str, Answer] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    answers[output.request_id] = _answer(output)
        return answers

    def time_to_first_token(self, ask: Ask) -> float:
        """Seconds from adding one request to its first token; the engine is idle before and after."""
        started = time.perf_counter()
        self._add(ask)
        while not self._engine.step():
            pass
        seconds = time.perf_counter() - started
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return seconds

    def close(self) -> None:
        """Stop the engine."""
        self._engine.engine_core.shutdown()

    def take_first_token(self, name: str) -> NDArray[np.float32]:
        """The log-probabilities, ``(vocabulary,)``, kept under a name; once."""
        return self._first_tokens.pop(name)

    def _add(self, ask: Ask) -> None:
        from vllm import SamplingParams, TokensPrompt

        from benchmarks.quality.forcing import FORCED, KEPT

        extra_args: dict[str, Any] = ask.prompt.extra_args()
        if ask.forced:
            extra_args[FORCED] = list(ask.forced)
        if ask.keep_as is not None:
            extra_args[KEPT] = ask.keep_as
        params = SamplingParams(
            temperature=0.0,
            max_tokens=len(ask.forced) or ask.max_tokens,
            ignore_eos=bool(ask.forced),
            logprobs=0 if ask.forced else None,
            extra_args=extra_args,
            # What an earlier question computed of the very same prefix is exact: full prefill may find it.
            skip_reading_prefix_cache=not (ask.found_by_prefix and ask.prompt.way.is_full),
        )
        self._engine.add_request(ask.name, TokensPrompt(prompt_token_ids=ask.prompt.token_ids), params)


def _answer(output: Any) -> Answer:
    completion = output.outputs[0]
    token_ids = tuple(completion.token_ids)
    found = completion.logprobs or ()
    logprobs = tuple(float(by_token[t].logprob) for t, by_token in zip(token_ids, found, strict=False))
    report = (output.kv_transfer_params or {}).get(EXTRA_ARG, {})
    num_of_modules = report.get("tokens_reused", 0) + report.get("tokens_encoded", 0)
    return Answer(completion.text, token_ids, logprobs, num_of_modules)
