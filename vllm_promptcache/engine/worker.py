"""The workers: vLLM's, with the prompt cache's model runner."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker import gpu_model_runner, gpu_worker

from vllm_promptcache import compat
from vllm_promptcache.engine.model_runner import PromptCacheRunner
from vllm_promptcache.engine.worker_mixin import PromptCacheWorkerMixin


class PromptCacheGPUModelRunner(PromptCacheRunner, gpu_model_runner.GPUModelRunner):
    """vLLM's V1 GPU model runner with composed requests."""


class PromptCacheGPUWorker(PromptCacheWorkerMixin, gpu_worker.Worker):
    """vLLM's GPU worker with composed requests."""

    def _make_model_runner(self) -> Any:
        compat.probe("gpu worker", "v2 runner" if self.use_v2_model_runner else "v1 runner")
        if self.use_v2_model_runner:
            from vllm.v1.worker.gpu import model_runner

            from vllm_promptcache.engine.gpu_runner_v2 import PromptCacheGPUModelRunnerV2

            replaced = compat.model_runner_class(
                PromptCacheGPUModelRunnerV2, model_runner.GPUModelRunner, model_runner
            )
        else:
            replaced = compat.model_runner_class(
                PromptCacheGPUModelRunner, gpu_model_runner.GPUModelRunner, gpu_model_runner
            )
        with replaced:
            return super()._make_model_runner()
