"""Real vLLM engines inside the test's process, and plans to ask them."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Set before vLLM is imported anywhere: the engine runs in this process, step by step.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
# Tiny models gain nothing from threads, and lose much where several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.engine.block_manager import PromptCacheBlockManager
from vllm_promptcache.engine.configure import SCHEDULERS
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import StoredUnit

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

MAX_MODEL_LEN = 8192
# More steps than any test needs: an engine that stands still fails instead of hanging.
MAX_STEPS = 10_000
MAX_IDLE_STEPS = 50

open_engines: list[Engine] = []


class Engine:
    """An LLMEngine with the prompt cache (unless `prompt_cache=None`) that tests step through."""

    def __init__(self, model: Path | str, prompt_cache: dict[str, Any] | None = None, **settings: Any):
        defaults: dict[str, Any] = {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": 32,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_batched_tokens": 2048,
            "max_num_seqs": 64,
            "kv_cache_memory_bytes": 1 << 28,
            "num_gpu_blocks_override": 1000,
            "disable_log_stats": True,
        }
        plugin = settings.pop("plugin", True)
        force_async = settings.pop("force_async", False)
        if plugin:
            # No records, unless a test asks for them: what is dropped is encoded again.
            settings["additional_config"] = {"prompt_cache": {"host_gib": 0, **(prompt_cache or {})}}
        arguments = EngineArgs(model=str(model), **(defaults | settings))
        vllm_config = arguments.create_engine_config()
        if force_async:  # vLLM switches it off on CPUs, where it gains nothing; it works all the same
            vllm_config.scheduler_config.async_scheduling = True
            vllm_config.scheduler_config.scheduler_cls = SCHEDULERS[True]
        self.llm_engine = LLMEngine.from_vllm_config(vllm_config, disable_log_stats=True)
        self.core: Any = self.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        self.scheduler: Any = self.core.scheduler
        # A model with recurrent layers has none.
        self.has_prompt_cache = plugin and hasattr(self.scheduler, "store")
        self.outputs: dict[str, RequestOutput] = {}
        self._numbers = itertools.count()
        self._idle_steps = 0
        self.encoded: list[Any] = []
        if self.has_prompt_cache:
            self._record_encodings()
        open_engines.append(self)

    def _record_encodings(self) -> None:
        """Keep the unit of every encoding that begins, in order, in `encoded`."""
        begin = self.scheduler.encodings.begin

        def recorded(unit: StoredUnit, *args: Any) -> None:
            self.encoded.append(unit.key)
            begin(unit, *args)

        self.scheduler.encodings.begin = recorded

    @property
    def manager(self) -> PromptCacheBlockManager:
        manager = self.scheduler.kv_cache_manager
        assert isinstance(manager, PromptCacheBlockManager)
        return manager

    @property
    def store(self) -> ModuleStore:
        return self.manager.store

    # -- asking ----------------------------------------------------------------------------------

    def add(self, prompt: Plan | Sequence[int], params: SamplingParams | None = None, **more: Any) -> str:
        """Queue a composed or a plain request; returns the name under which its output is found."""
        params = (params or greedy()).clone()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        if isinstance(prompt, Plan):
            params = composed(params, prompt)
            token_ids = prompt_token_ids(prompt)
        else:
            token_ids = list(prompt)
        salt = more.pop("cache_salt", None)
        name = more.pop("name", None) or f"request-{next(self._numbers)}"
        tokens = TokensPrompt(prompt_token_ids=token_ids)
        if salt is not None:
            tokens["cache_salt"] = salt
        self.llm_engine.add_request(name, tokens, params, **more)
        return name

    def step(self) -> list[RequestOutput]:
        """One step; finished outputs are kept in `outputs`."""
        finished = []
        computed = self.num_computed_tokens
        for output in self.llm_engine.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                self.outputs[output.request_id] = output
                finished.append(output)
        idle = self.num_computed_tokens == computed and not finished
        self._idle_steps = self._idle_steps + 1 if idle else 0
        return finished

    def _run_while(self, busy: Callable[[], bool]) -> None:
        self._idle_steps = 0
        for _ in range(MAX_STEPS):
            if not busy():
                return
            self.step()
            if self._idle_steps > MAX_IDLE_STEPS:
                raise AssertionError(f"the engine stands still: {self.scheduler.get_request_counts()}")
        raise AssertionError(f"the engine is not done after {MAX_STEPS} steps")

    @property
    def num_computed_tokens(self) -> int:
        """Changes whenever anything is computed."""
        requests = self.scheduler.requests.values()
        return sum(r.num_computed_tokens + 1_000_003 * r.num_preemptions for r in requests)

    def finish(self) -> None:
        """Step until nothing is left to do."""
        self._run_while(self.llm_engine.has_unfinished_requests)
        self.drain()

    def drain(self) -> None:
        """Let the engine finish what nobody waits for, such as encoding."""
        self._run_while(self.scheduler.has_requests)

    def finish_or_abort(self) -> None:
        """Leave nothing behind, whatever a failed test left."""
        states = self.llm_engine.output_processor.request_states
        self.abort(*(state.external_req_id for state in states.values()))
        self.drain()
        self.outputs.clear()

    def ask(
        self, prompts: Iterable[Plan | Sequence[int]], params: SamplingParams | None = None, **more: Any
    ) -> list[RequestOutput]:
        """Queue requests at once, finish them, and return their outputs in order."""
        names = [self.add(prompt, params, **more) for prompt in prompts]
        self.finish()
        return [self.outputs.pop(name) for name in names]

    def abort(self, *names: str) -> None:
        self.llm_engine.abort_request(list(names))

    def reclaim_all(self) -> None:
        """Take the blocks of all units that may be dropped."""
        for _ in self.store.resident.reclaim(set()):
            pass

    @property
    def kept_rows(self) -> set[Any]:
        """The units whose edge rows the worker keeps."""
        return set(self.core.model_executor.driver_worker.worker.model_runner.row_store._rows)

    # -- the front end's calls -------------------------------------------------------------------

    def call(self, operation: str, **payload: Any) -> dict[str, Any]:
        """One call of `scheduler.prompt_cache`, the way the front end reaches it."""
        return dict(self.core.prompt_cache(operation, payload))

    def forget_everything(self) -> None:
        """Drop all states that nobody holds, so that tests do not warm each other's requests."""
        self.drain()
        assert self.llm_engine.reset_prefix_cache()
        for unit in self.store.known.by_key.values():
            assert unit.pinned or not unit.blocks, f"{unit.key} is resident"
        self.encoded.clear()

    def check(self) -> None:
        """Blocks: free + modules + in use + null = total."""
        if self.has_prompt_cache:
            self.manager.check_integrity()

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        open_engines.remove(self)
        self.llm_engine.engine_core.shutdown()
        self.core = self.scheduler = None
        del self.llm_engine
        gc.collect()
        cleanup_dist_env_and_memory()


class SharedEngine:
    """An engine that is started when it is first asked for, and again after another one took its place."""

    def __init__(self, model: Path | str, **settings: Any):
        self._model, self._settings = model, settings
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """The engine, with nothing resident."""
        if self._engine is None or self._engine not in open_engines:
            close_all()
            self._engine = Engine(self._model, **self._settings)
        self._engine.forget_everything()
        return self._engine


def close_all() -> None:
    """Check and close open engines: vLLM has one set of process groups, which an engine takes down."""
    for engine in list(open_engines):
        try:
            engine.finish_or_abort()
            engine.check()
        finally:
            engine.close()


@contextlib.contextmanager
def serving(model: Path | str, **settings: Any) -> Iterator[Engine]:
    """An engine for a `with` block, the only one meanwhile; its blocks are checked at the end."""
    close_all()
    engine = Engine(model, **settings)
    try:
        yield engine
        engine.check()
    finally:
        engine.close()


def greedy(max_tokens: int = 8, **more: Any) -> SamplingParams:
    """Greedy sampling of exactly so many tokens."""
    more.setdefault("ignore_eos", True)
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, detokenize=False, **more)


def composed(params: SamplingParams, plan: Plan, *, with_texts: bool = True, **more: Any) -> SamplingParams:
    """The same parameters for a request that is composed as the plan says."""
    params = params.clone()
    wire = plan_to_wire(plan, with_texts=with_texts, **more)
    params.extra_args = {**(params.extra_args or {}), "prompt_cache": wire}
    return params


def tokens_of(output: RequestOutput, index: int = 0) -> list[int]:
    return list(output.outputs[index].token_ids)


def report_of(output: RequestOutput) -> dict[str, int]:
    """What the engine says of a composed request."""
    assert output.kv_transfer_params is not None
    return dict(output.kv_transfer_params["prompt_cache"])


def tokens_of_modules(output: RequestOutput) -> int:
    """Tokens whose states are modules', resident before or encoded for the request."""
    report = report_of(output)
    return report["tokens_reused"] + report["tokens_encoded"]


def largest_error(output: RequestOutput, expected: Any) -> float:
    """The largest difference of any log-probability that was returned from the oracle's."""
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    return max(
        abs(found.logprob - float(expected[step, token]))
        for step, by_token in enumerate(logprobs)
        for token, found in by_token.items()
    )
