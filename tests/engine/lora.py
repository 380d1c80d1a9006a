"""LoRA adapters with random weights, as PEFT writes them, and the models that they come to."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 8, 16
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")


def write_adapter(folder: Path, model: Path, seed: int) -> None:
    """Write an adapter of a model's attention into a folder, in place of what is there."""
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.split(".")[-2] in MODULES:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            outputs, inputs = weight.shape
            tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) / inputs**0.5
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) / RANK**0.5
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(MODULES)}))


def merge(model: Path, adapter: Path, folder: Path) -> Path:
    """A model with an adapter's weights added to its own."""
    shutil.copytree(model, folder)
    added = load_file(adapter / "adapter_model.safetensors")
    weights = load_file(model / "model.safetensors")
    for name in weights:
        place = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{place}.lora_A.weight" in added:
            product = added[f"{place}.lora_B.weight"] @ added[f"{place}.lora_A.weight"]
            weights[name] = weights[name] + product * (ALPHA / RANK)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
