"""Which models the prompt cache serves, and what it has to know of them: read from their configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm_promptcache import compat
from vllm_promptcache.contract.repair import RECURRENT

# Their configurations do not say so. Others are found when their layers are there.
ALWAYS_ALIBI = {"bloom"}


class Verdict(NamedTuple):
    """Whether a model is served, and a sentence about it."""

    is_served: bool
    sentence: str


def refusal(model: str, reasons: list[str]) -> str:
    """What is said where a model, or settings for it, are refused."""
    return f"--enable-prompt-cache does not work with {model}: {'; '.join(reasons)}"


def verdict_of(model: str, max_model_len: int | None = None, trust_remote_code: bool = False) -> Verdict:
    """Whether a model is served, by its configuration: a hub name or a folder."""
    from vllm.config import ModelConfig

    compat.register_mpt()
    try:
        config = ModelConfig(
            model=model,
            max_model_len=max_model_len,  # type: ignore[arg-type]
            trust_remote_code=trust_remote_code,
            skip_tokenizer_init=True,
        )
    except (OSError, ValueError) as error:
        return Verdict(False, f"vLLM cannot read its configuration: {str(error).strip().splitlines()[-1]}")
    if reasons := reasons_against(config):
        return Verdict(False, refusal(model, reasons))
    return Verdict(True, f"served, up to {config.max_model_len} positions{_copied(config)}")


def _copied(model_config: Any) -> str:
    """What of modules each request copies, or computes, as a part of a sentence."""
    if is_recurrent(model_config):
        return f"; {RECURRENT}"
    if has_alibi(model_config.hf_text_config):
        return "; ALiBi: modules are copied for each request"
    window = window_of(model_config)
    return f"; what a window of {window - 1} states reaches is copied for each request" if window else ""


def reasons_against(model_config: Any) -> list[str]:
    """Why a model's states cannot be composed, a reason each; none if they can.

    What a configuration does not tell is found when the model's layers are there: ``compat.check_layers``.
    """
    found = [
        (model_config.runner_type == "pooling", "pooling models generate nothing after a composed prompt"),
        (
            model_config.is_encoder_decoder,
            "encoder-decoder models attend to the prompt through cross-attention",
        ),
    ]
    if not is_recurrent(model_config):
        found += _reasons_of_layers(model_config)
    return [reason for applies, reason in found if applies]


def _reasons_of_layers(model_config: Any) -> list[tuple[bool, str]]:
    text_config = model_config.hf_text_config
    chunk = getattr(text_config, "attention_chunk_size", None)
    slides_from_prompt = model_config.rswa_window is not None
    return [
        (
            bool(chunk) and chunk < model_config.max_model_len,
            f"chunked-local attention: its chunks of {chunk} tokens are cut by index, and block tables are"
            f" composed; with --max-model-len {chunk} or less it has one",
        ),
        (slides_from_prompt, "windows that are counted from the prompt's end are not composed"),
        (
            _prunes_video(model_config),
            "video pruning: it computes positions again after those of composed requests were set",
        ),
        (
            model_config.use_mla and hasattr(text_config, "index_topk"),
            "sparse latent attention keeps its indexer's keys in a cache of its own",
        ),
    ]


def is_recurrent(model_config: Any) -> bool:
    """Whether a model has recurrent layers (Mamba, linear).

    Their states hold all that was before, and are not composed: prompts run as plain ones.
    """
    return bool(model_config.is_hybrid or model_config.is_attention_free)


def _prunes_video(model_config: Any) -> bool:
    multimodal = model_config.multimodal_config
    return multimodal is not None and bool(multimodal.is_multimodal_pruning_enabled())


def has_alibi(text_config: Any) -> bool:
    """Whether a model adds to attention scores what depends on distances between indices."""
    attention = getattr(text_config, "attn_config", None)
    return (
        bool(getattr(text_config, "alibi", False))
        or getattr(text_config, "position_embedding_type", "") == "alibi"
        or getattr(text_config, "model_type", "") in ALWAYS_ALIBI
        or bool(getattr(attention, "alibi", False))
    )


def window_of(model_config: Any) -> int:
    """The most states, its own included, that a window of a model's layers counts; 0 if none can bind.

    A window of more than ``max_model_len`` states counts all that there can be. ALiBi is a window of all
    states: what it adds is right where index and order are one.
    """
    text_config = model_config.hf_text_config
    if has_alibi(text_config):
        return int(model_config.max_model_len)
    kinds = set(getattr(text_config, "layer_types", None) or ())
    window = model_config.get_sliding_window()
    if not window or (kinds and "sliding_attention" not in kinds):
        return 0
    # Cohere 2 counts one more than it is configured for. More than there is costs a row each, no harm.
    window = int(window) + 1
    return window if window <= model_config.max_model_len else 0
