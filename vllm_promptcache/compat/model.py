"""A model's files, and the numbers that its layers keep for a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def numbers_of_rows(kv_cache_config: Any) -> Iterator[int]:
    """The lengths of all vectors that a token leaves in a worker's KV cache: a key and a value of each head.

    Target: KVCacheConfig's groups and their specs. Layers that read another's cache are in none.
    """
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        specs = getattr(spec, "kv_cache_specs", None) or dict.fromkeys(group.layer_names, spec)
        for layer in specs.values():
            yield from (layer.head_size, layer.head_size_v) * layer.num_kv_heads


def weights_folder(vllm_config: Any) -> Path:
    """The folder with the model's weights, as a hub's cache has it where the model is not a folder itself.

    Raises:
        OSError: there is none.
    """
    from huggingface_hub import snapshot_download

    model = vllm_config.model_config
    path = Path(model.model)
    if path.is_dir():
        return path
    download_dir = vllm_config.load_config.download_dir
    try:
        found = snapshot_download(
            model.model, revision=model.revision, cache_dir=download_dir, local_files_only=True
        )
    except Exception as error:
        raise OSError(f"the files of {model.model} are not found: {error}") from error
    return Path(found)


def register_mpt() -> None:
    """Let vLLM find a model class for MPT in this process.

    Target: ModelRegistry.register_model. Why: vLLM has dropped it (0.28), and Prompt Cache was measured on
    it. Unnecessary where a vLLM has one of its own, which is left as it is.
    """
    from vllm.model_executor.models import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for architecture in ("MPTForCausalLM", "MptForCausalLM"):
        if architecture not in known:
            ModelRegistry.register_model(architecture, "vllm_promptcache.compat.mpt:MPTForCausalLM")
