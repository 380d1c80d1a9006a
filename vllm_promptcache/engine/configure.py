"""What the prompt cache changes in vLLM's configuration, and which models and settings it refuses."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from vllm_promptcache import compat
from vllm_promptcache.config import PromptCacheConfig, is_enabled

logger = init_logger(__name__)

WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "vllm_promptcache.engine.cpu_worker.PromptCacheCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "vllm_promptcache.engine.worker.PromptCacheGPUWorker",
}
SCHEDULERS = {
    True: "vllm_promptcache.engine.scheduler.PromptCacheAsyncScheduler",
    False: "vllm_promptcache.engine.scheduler.PromptCacheScheduler",
}

# Their configurations do not say so. Others are found when their layers are there.
ALWAYS_ALIBI = {"bloom", "mpt"}


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
    worker = vllm_config.parallel_config.worker_cls
    if worker in WORKERS.values():  # configured already
        return
    if worker not in WORKERS:
        raise compat.UnsupportedError(f"the prompt cache has no worker to put in place of {worker}")
    vllm_config.parallel_config.worker_cls = WORKERS[worker]
    scheduler = vllm_config.scheduler_config
    if scheduler.scheduler_cls is not None:
        raise compat.UnsupportedError(f"the prompt cache cannot be combined with {scheduler.scheduler_cls}")
    scheduler.scheduler_cls = SCHEDULERS[bool(scheduler.async_scheduling)]
    fusions = vllm_config.compilation_config.pass_config
    for name in ("fuse_rope_kvcache", "fuse_qk_norm_rope_kvcache"):
        if getattr(fusions, name, False):
            logger.info("Prompt cache: %s is switched off, module states are captured there.", name)
            setattr(fusions, name, False)


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse what would be computed wrongly.

    Raises:
        UnsupportedError: naming every reason.
    """
    reasons = [reason for applies, reason in _reasons(vllm_config) if applies]
    if reasons:
        model = vllm_config.model_config.model
        raise compat.UnsupportedError(
            f"--enable-prompt-cache does not work with {model}: {'; '.join(reasons)}"
        )


def _reasons(vllm_config: Any) -> list[tuple[bool, str]]:
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    text_config = model.hf_text_config
    index = "block tables are composed, so a distance in the table is not a distance in positions"
    alibi = (
        bool(getattr(text_config, "alibi", False))
        or getattr(text_config, "position_embedding_type", "") in ("alibi", "absolute", "relative_key")
        or getattr(text_config, "model_type", "") in ALWAYS_ALIBI
    )
    return [
        (model.runner_type == "pooling", "pooling models generate nothing after a composed prompt"),
        (model.is_encoder_decoder, "encoder-decoder models attend to the prompt through cross-attention"),
        (model.is_hybrid or model.is_attention_free, "recurrent (Mamba, linear) states cannot be composed"),
        (_slides(model), f"sliding-window or chunked-local attention: {index}"),
        (alibi, f"position embeddings other than rotary (such as ALiBi): {index}"),
        (model.use_mla, "multi-head latent attention has a cache update of its own"),
        (model.uses_mrope, "multi-dimensional rotary positions are not laid out by PML"),
        (vllm_config.speculative_config is not None, "speculative decoding is not supported yet"),
        (vllm_config.kv_transfer_config is not None, "KV connectors address tokens by their index"),
        (_publishes_kv_events(vllm_config), "KV events tell of blocks by the tokens before them"),
        (parallel.decode_context_parallel_size > 1, "decode context parallelism splits blocks by index"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism has not been tried"),
        (parallel.enable_dbo, "dual-batch overlap splits rows"),
        (not vllm_config.scheduler_config.enable_chunked_prefill, "chunked prefill must stay enabled"),
    ]


def _publishes_kv_events(vllm_config: Any) -> bool:
    events = vllm_config.kv_events_config
    return events is not None and bool(events.enable_kv_cache_events)


def _slides(model_config: Any) -> bool:
    text_config = model_config.hf_text_config
    kinds = set(getattr(text_config, "layer_types", None) or ())
    if getattr(text_config, "attention_chunk_size", None) or "chunked_attention" in kinds:
        return True
    if kinds:
        return "sliding_attention" in kinds
    return model_config.get_sliding_window() is not None
