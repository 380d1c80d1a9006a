"""The V2 model runner for CPUs. Imported where vLLM chose V2 only: it needs Triton."""

from __future__ import annotations

from vllm.v1.worker.cpu import model_runner

from vllm_promptcache.engine.model_runner_v2 import PromptCacheRunnerV2


class PromptCacheCPUModelRunnerV2(PromptCacheRunnerV2, model_runner.CPUModelRunner):
    """vLLM's V2 CPU model runner with composed requests."""
