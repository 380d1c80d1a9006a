"""The CPU worker: vLLM's, with the prompt cache's model runner."""

from __future__ import annotations

from vllm.v1.worker import cpu_worker

from vllm_promptcache import compat
from vllm_promptcache.engine.model_runner import PromptCacheRunner
from vllm_promptcache.engine.working import PromptCacheWorking


class PromptCacheCPUModelRunner(PromptCacheRunner, cpu_worker.CPUModelRunner):
    """vLLM's V1 CPU model runner with composed requests."""


class PromptCacheCPUWorker(PromptCacheWorking, cpu_worker.CPUWorker):
    """vLLM's CPU worker with composed requests."""

    def init_device(self) -> None:
        """As vLLM's, constructing the prompt cache's model runner of the generation that vLLM chose."""
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
