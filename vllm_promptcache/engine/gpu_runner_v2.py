"""The V2 model runner for GPUs. Imported where vLLM chose V2 only: it needs Triton."""

from __future__ import annotations

from vllm.v1.worker.gpu import model_runner

from vllm_promptcache.engine.model_runner_v2 import PromptCacheRunnerV2


class PromptCacheGPUModelRunnerV2(PromptCacheRunnerV2, model_runner.GPUModelRunner):
    """vLLM's V2 GPU model runner with composed requests."""
