"""The CPU worker: vLLM's, with the prompt cache's model runner."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker import cpu_worker

from vllm_promptcache import compat
from vllm_promptcache.engine.heap import keep_heap
from vllm_promptcache.engine.model_runner import PromptCacheRunner
from vllm_promptcache.engine.worker_mixin import PromptCacheWorkerMixin


class PromptCacheCPUModelRunner(PromptCacheRunner, cpu_worker.CPUModelRunner):
    """vLLM's V1 CPU model runner with composed requests, and with seeds whose prompts come in several chunks.

    What is sampled behind a chunk that is not the last is discarded. vLLM then winds the request's generator
    back by its offset, which those of CPUs do not have (patches/: cpu-generators).
    """

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        discarded = self._discarded_generators()
        states = [(generator, generator.get_state()) for generator in discarded.values()]
        output = super()._sample(*args, **kwargs)
        for generator, state in states:
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators, discarded = self.input_batch.generators, self._discarded_generators()
        for index in discarded:
            del generators[index]
        try:
            return super()._bookkeeping_sync(*args, **kwargs)
        finally:
            generators.update(discarded)

    def _discarded_generators(self) -> dict[int, torch.Generator]:
        """Generators of requests of which this step samples nothing that stays, by their places."""
        discarded = self.discard_request_mask.np
        generators = self.input_batch.generators.items()
        return {index: generator for index, generator in generators if discarded[index]}


class PromptCacheCPUWorker(PromptCacheWorkerMixin, cpu_worker.CPUWorker):
    """vLLM's CPU worker with composed requests."""

    def init_device(self) -> None:
        """As vLLM's, constructing the prompt cache's model runner of the generation that vLLM chose."""
        keep_heap()
        compat.probe("cpu worker", "v2 runner" if self.use_v2_model_runner else "v1 runner")
        if self.use_v2_model_runner:
            from vllm.v1.worker.cpu import model_runner

            from vllm_promptcache.engine.cpu_runner_v2 import PromptCacheCPUModelRunnerV2

            replaced = compat.model_runner_class(
                PromptCacheCPUModelRunnerV2, model_runner.CPUModelRunner, model_runner
            )
        else:
            replaced = compat.model_runner_class(
                PromptCacheCPUModelRunner, cpu_worker.CPUModelRunner, cpu_worker
            )
        with replaced:
            super().init_device()  # type: ignore[no-untyped-call]
