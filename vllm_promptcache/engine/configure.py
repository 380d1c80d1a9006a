"""What the prompt cache changes in vLLM's configuration, and which models and settings it refuses."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from vllm_promptcache import compat
from vllm_promptcache.config import PromptCacheConfig, is_enabled
from vllm_promptcache.contract.repair import RECURRENT
from vllm_promptcache.engine import models

logger = init_logger(__name__)

WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "vllm_promptcache.engine.cpu_worker.PromptCacheCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "vllm_promptcache.engine.worker.PromptCacheGPUWorker",
}
SCHEDULERS = {
    True: "vllm_promptcache.engine.scheduler.PromptCacheAsyncScheduler",
    False: "vllm_promptcache.engine.scheduler.PromptCacheScheduler",
}
PLAIN_SCHEDULERS = {
    True: "vllm_promptcache.engine.plain_scheduler.PlainAsyncScheduler",
    False: "vllm_promptcache.engine.plain_scheduler.PlainScheduler",
}

# Compile passes that put a layer's cache update into another kernel.
FUSIONS = ("fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache", "fuse_rope_kvcache_cat_mla")


def configure(vllm_config: Any) -> None:
    """Put the prompt cache's scheduler and worker in place, if it is enabled.

    Raises:
        UnsupportedError: the model or a setting cannot be combined with modular reuse; says why.
        ValueError: a setting of the prompt cache itself is wrong.
    """
    if not is_enabled(vllm_config):
        return
    PromptCacheConfig.from_vllm_config(vllm_config)
    runner = "V2" if vllm_config.use_v2_model_runner else "V1"
    logger.info_once(f"Prompt cache: enabled, on vLLM's {runner} model runner.")
    refuse_unsupported(vllm_config)
    scheduler = vllm_config.scheduler_config
    is_async = bool(scheduler.async_scheduling)
    if models.is_recurrent(vllm_config.model_config):
        logger.info_once("Prompt cache: %s", RECURRENT)
        _replace_scheduler(scheduler, PLAIN_SCHEDULERS[is_async])
        return
    worker = vllm_config.parallel_config.worker_cls
    if worker in WORKERS.values():  # configured already
        return
    if worker not in WORKERS:
        raise compat.UnsupportedError(f"the prompt cache has no worker to put in place of {worker}")
    vllm_config.parallel_config.worker_cls = WORKERS[worker]
    _replace_scheduler(scheduler, SCHEDULERS[is_async])
    if _is_latent_on_cpu(vllm_config.model_config):
        scheduler.enable_chunked_prefill = True
    fusions = vllm_config.compilation_config.pass_config
    for name in FUSIONS:
        if getattr(fusions, name, False):
            logger.info("Prompt cache: %s is switched off, module states are captured there.", name)
            setattr(fusions, name, False)


def _replace_scheduler(scheduler_config: Any, scheduler: str) -> None:
    if scheduler_config.scheduler_cls not in (None, scheduler):
        given = scheduler_config.scheduler_cls
        raise compat.UnsupportedError(f"the prompt cache cannot be combined with {given}")
    scheduler_config.scheduler_cls = scheduler


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse what would be computed wrongly.

    Raises:
        UnsupportedError: naming every reason.
    """
    reasons = _reasons(vllm_config)
    if reasons:
        raise compat.UnsupportedError(models.refusal(vllm_config.model_config.model, reasons))


def _reasons(vllm_config: Any) -> list[str]:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if models.is_recurrent(model):
        return models.reasons_against(model)
    scheduling = vllm_config.scheduler_config
    found = [
        (
            not (model.disable_cascade_attn or vllm_config.use_v2_model_runner),
            "cascade attention takes a batch's rows for its requests",
        ),
        (parallel.decode_context_parallel_size > 1, "decode context parallelism splits blocks by index"),
        (parallel.prefill_context_parallel_size > 1, "prefill context parallelism splits requests by index"),
        (parallel.enable_dbo, "dual-batch overlap splits rows"),
        (
            bool(getattr(vllm_config.speculative_config, "enable_adaptive_verification", False)),
            "adaptive verification cuts drafts on the device, after composed steps are laid out",
        ),
        (
            not (scheduling.enable_chunked_prefill or _is_latent_on_cpu(model)),
            "chunked prefill must stay enabled",
        ),
    ]
    return [*models.reasons_against(model), *(reason for applies, reason in found if applies)]


def _is_latent_on_cpu(model_config: Any) -> bool:
    """vLLM switches chunked prefill off there, as its own CPU kernels had no use for it."""
    from vllm.platforms import current_platform

    return bool(model_config.use_mla) and current_platform.is_cpu()
