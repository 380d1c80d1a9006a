"""Tiny random models for engine tests: real architectures, a real tokenizer, seconds to serve.

Their weights are drawn so that every earlier token and its position show in the logits (a mask or a
position that is wrong changes the output), answers do not repeat themselves, and the two best logits
are far apart compared with float32 rounding (a typical gap is 1, rounding is 1e-4).
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from demo.embedded_model import cache_folder, embedded_model_path, made_once

# A change of how weights are drawn needs a new number: folders are never changed in place.
FORMAT_NUMBER = 1

# A setting that is to be None where the architecture's own value is another.
NULL = "<null>"

# 4 heads over 2 key-value heads, so that two workers can share them; a head size (32) that vLLM's CPU
# attention has; the vocabulary of the embedded model's tokenizer.
TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 16384,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def tiny_llama(*, seed: int = 0, **changes: Any) -> Path:
    """A folder with a random Llama of `TINY_CONFIG` with `changes` made to it."""
    return tiny_model("llama", seed=seed, **changes)


def tiny_model(model_type: str, *, seed: int = 0, draws_norms: bool = False, **changes: Any) -> Path:
    """A folder with a random model of any decoder architecture that Transformers knows by `model_type`.

    It has the embedded model's tokenizer and chat template, float32 weights (25 MB), and is kept in the
    cache folder under a name that depends on everything that was asked for. A change to None leaves a
    setting to the architecture, one to `NULL` makes it None. With ``draws_norms`` the scales of norms are
    random too, as those of trained models are.
    """
    config = {key: value for key, value in (TINY_CONFIG | changes).items() if value is not None}
    key = json.dumps([FORMAT_NUMBER, model_type, seed, config, *["norms"] * draws_norms], sort_keys=True)
    config = {key: None if value == NULL else value for key, value in config.items()}
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]

    def make(_work: Path, folder: Path) -> None:
        _save(model_type, config, seed, draws_norms, folder)

    return made_once(cache_folder() / f"tiny-{model_type}-{digest}", make)


def _save(model_type: str, config: dict[str, Any], seed: int, draws_norms: bool, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from tests.reference import model_class

    # Made first: from_config draws weights of its own, at random but from the same generator.
    with torch.random.fork_rng(devices=[]):
        made = AutoConfig.for_model(model_type, **config)
        model: Any = model_class(made).from_config(made, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim == 2:
                parameter.normal_(0, _deviation(name, parameter.shape[1]), generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=generator)
            elif draws_norms and "norm" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(embedded_model_path()).save_pretrained(folder)


def _deviation(name: str, inputs: int) -> float:
    """The standard deviation of a weight matrix with so many inputs.

    Sharper attention (queries, keys) than 1 / sqrt(inputs) makes logits depend on single tokens; louder
    values and outputs make the dependence large beside the token's own embedding.
    """
    if "embed" in name or "lm_head" in name:
        return 1.0
    gain = 1.5 if "q_proj" in name or "k_proj" in name else 2.0
    return gain / math.sqrt(inputs)
