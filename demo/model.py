"""The model of the demo: which one, in which data type, and how much memory serving it takes."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.embedded_model import EmbeddedModelError, embedded_model_path
from demo.errors import DemoError
from demo.machine import GIB

# The demo's prompts are far shorter; a longer context would only take memory.
MAX_POSITIONS = 8192
# KV blocks for so many prompts of full length: half of the blocks may be pinned by modules.
NUM_FULL_PROMPTS = 2
# Three Python processes with PyTorch, as measured.
PROCESSES_BYTES = 2 * GIB
KV_SPACE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True)
class DemoModel:
    """A model to serve. `name` is what users call it, `path` a folder or a hub name.

    `weights_bytes` is 0 where they are not on this machine yet.
    """

    name: str
    path: str
    dtype: str
    max_model_len: int
    weights_bytes: int
    kv_bytes_per_token: int

    @property
    def kv_space_gib(self) -> int:
        """GiB for KV blocks on a CPU: what the user's environment says, or enough for the demo."""
        given = os.environ.get(KV_SPACE_VARIABLE, "")
        if given.isdigit() and int(given):
            return int(given)
        return math.ceil(NUM_FULL_PROMPTS * self.max_model_len * self.kv_bytes_per_token / GIB) or 1

    @property
    def needed_bytes(self) -> int:
        """Main memory that a CPU server of this model takes, roughly."""
        return PROCESSES_BYTES + self.weights_bytes * 5 // 4 + self.kv_space_gib * GIB


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def open_model(model: str | None, dtype: str | None) -> DemoModel:
    """The model that is asked for, or the embedded one (made first where it is missing, with progress on
    stderr). It is served as `dtype`, or in float32 if it is the embedded one, else as its configuration
    says.

    Raises:
        DemoError: it cannot be made, or there is no such model.
    """
    if model is None:
        try:
            path = embedded_model_path()
        except EmbeddedModelError as error:
            raise DemoError(str(error)) from error
        # In bfloat16 this 4-bit model answers badly.
        return _described("SmolLM2-135M-Instruct", str(path), dtype or "float32")
    return _described(Path(model).name or model, model, dtype or "auto")


def _described(name: str, path: str, dtype: str) -> DemoModel:
    try:
        config = _read_config(path)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise DemoError(f"cannot read the configuration of model {path!r}: {first_line}") from error
    stored_bytes = bytes_per_number(str(config.get("dtype") or config.get("torch_dtype")))
    served_bytes = stored_bytes if dtype == "auto" else bytes_per_number(dtype)
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return DemoModel(
        name=name,
        path=path,
        dtype=dtype,
        max_model_len=min(MAX_POSITIONS, int(config.get("max_position_embeddings", MAX_POSITIONS))),
        weights_bytes=weights * served_bytes // stored_bytes,
        kv_bytes_per_token=kv_numbers_per_token(config) * served_bytes,
    )


def _read_config(path: str) -> dict[str, Any]:
    """A model's `config.json`, or the part of it that is about text. Needs no PyTorch, which takes long.

    Raises OSError or ValueError.
    """
    file = Path(path, "config.json")
    if not Path(path).is_dir():
        from huggingface_hub import hf_hub_download

        file = Path(hf_hub_download(path, "config.json"))
    config = json.loads(file.read_text(encoding="utf-8"))
    return dict(config.get("text_config") or config)


def kv_numbers_per_token(config: Mapping[str, Any]) -> int:
    """Keys and values of one token in all layers; 0 where the configuration does not say."""
    num_layers = int(config.get("num_hidden_layers") or 0)
    num_heads = int(config.get("num_attention_heads") or 1)
    num_kv_heads = int(config.get("num_key_value_heads") or num_heads)
    head_dim = int(config.get("head_dim") or config.get("hidden_size", 0) // num_heads)
    return 2 * num_layers * num_kv_heads * head_dim


def bytes_per_number(dtype: str) -> int:
    """4 for `float32`, else 2."""
    return 4 if dtype in ("float32", "float") else 2
