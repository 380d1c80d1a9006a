"""The oracle: exact logits of a composed prompt from nothing but what `explain` prints.

Transformers, float32, explicit positions and an explicit mask: the definition that everything else is
held against. It shares no code with the product.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache


def load_reference_model(path: Any) -> Any:
    """A Transformers model that takes an explicit four-dimensional mask."""
    config = AutoConfig.from_pretrained(path)
    # Falcon's eager attention adds ALiBi's bias twice.
    attention = "sdpa" if getattr(config, "alibi", False) else "eager"
    kind = model_class(config)
    model = kind.from_pretrained(path, dtype=torch.float32, attn_implementation=attention).eval()
    _as_in_vllm(model)
    return model


def _as_in_vllm(model: Any) -> None:
    """Let a model compute what vLLM's does where the two differ by themselves, also for plain prompts."""
    if model.config.model_type == "cohere2":  # trained with a window of one more than is written down
        model.config.sliding_window += 1
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "BloomGelu":
            model.set_submodule(name, torch.nn.GELU())
        if type(module).__name__ == "XIELUActivation":  # whose parameters vLLM keeps so
            module.to(torch.bfloat16)


def model_class(config: Any) -> Any:
    """The class that makes a model of a configuration: a language model, or one with a part for images."""
    is_text = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if is_text else AutoModelForImageTextToText


class Sequence:
    """Tokens as the model sees them, each with a position and the set of tokens it attends to."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.position_ids: list[int] = []
        self.sees: list[list[int]] = []

    def append(self, token_id: int, position_id: int, seen: list[int]) -> int:
        """Add a token that attends to the ``seen`` tokens and itself; returns its index."""
        index = len(self.token_ids)
        self.token_ids.append(token_id)
        self.position_ids.append(position_id)
        self.sees.append([*seen, index])
        return index


def build_sequence(explained: dict[str, Any]) -> tuple[Sequence, list[int]]:
    """Unit by unit, then the prompt's new tokens. Returns the tokens and the indices the prompt includes."""
    sequence = Sequence()
    units: dict[str, list[int]] = {}
    kept: dict[str, list[bool]] = {}
    for unit in explained["units"]:
        own: list[int] = []
        context = [i for name in unit["context"] for i, k in zip(units[name], kept[name], strict=True) if k]
        for token_id, position in zip(unit["token_ids"], unit["position_ids"], strict=True):
            before = [i for i in context if sequence.position_ids[i] < position]
            own.append(sequence.append(token_id, position, before + own))
        units[unit["id"]] = own
        kept[unit["id"]] = unit["kept"]
    included: list[int] = []
    for segment in explained["segments"]:
        if segment.get("new"):
            for token_id, position in zip(segment["token_ids"], segment["position_ids"], strict=True):
                included.append(sequence.append(token_id, position, list(included)))
        else:
            start, end = segment["start"], segment["end"]
            assert all(kept[segment["unit"]][start:end]), segment
            included += units[segment["unit"]][start:end]
    positions = [sequence.position_ids[i] for i in included]
    assert positions == sorted(set(positions)), "a prompt's tokens stand at increasing positions"
    return sequence, included


def masks(model: Any, sees: list[list[int]], position_ids: list[int]) -> Any:
    """The mask of each token of `sees` over all tokens, ``(1, 1, len(sees), tokens)``; by kind of layer for
    models that take one for each.

    A window of w counts states: the last w of those that a token attends to in position order, itself
    included.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    full = _mask(sees, len(position_ids))
    if not window:
        return full if not _by_kind(model) else {"full_attention": full}
    in_order = [sorted(seen, key=lambda index: position_ids[index]) for seen in sees]
    sliding = _mask([seen[-window:] for seen in in_order], len(position_ids))
    return {"full_attention": full, "sliding_attention": sliding} if _by_kind(model) else sliding


def _mask(sees: list[list[int]], num_tokens: int) -> torch.Tensor:
    mask = np.full((len(sees), num_tokens), np.finfo(np.float32).min, np.float32)
    for index, seen in enumerate(sees):
        mask[index, seen] = 0
    return torch.from_numpy(mask)[None, None]


def _by_kind(model: Any) -> bool:
    """Whether a model takes a mask for each kind of its layers: those it makes itself are by kind then."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    source = inspect.getsource(type(model.base_model).forward)
    return "sliding_attention" in kinds and "_mapping" in source


def _alibi(
    model: Any, sees: list[list[int]], position_ids: list[int]
) -> contextlib.AbstractContextManager[Any]:
    """Have a model with ALiBi, meanwhile, add to each score what its distance in states gives.

    Transformers' own bias is by index: ``(heads, 1, tokens)``, here ``(heads, len(sees), tokens)``. A state's
    distance from another is counted in the states that it attends to, in position order; softmax takes no
    notice of what is the same for all of them.
    """
    module = sys.modules[type(model).__module__]
    name = next((n for n in ("build_alibi_tensor", "build_mpt_alibi_tensor") if hasattr(module, n)), None)
    if name is None or not getattr(model.config, "alibi", True):
        return contextlib.nullcontext()
    ranks = torch.zeros(len(sees), len(position_ids))
    for index, seen in enumerate(sees):
        in_order = sorted(seen, key=lambda token: position_ids[token])
        ranks[index, in_order] = torch.arange(len(seen), dtype=torch.float32)
    build, heads = getattr(module, name), model.config.num_attention_heads
    is_by_length = name == "build_mpt_alibi_tensor"
    two = build(heads, 2) if is_by_length else build(torch.ones(1, 2), heads, torch.float32)
    bias = two.diff(dim=-1).reshape(heads, 1, 1) * ranks
    return mock.patch.object(module, name, return_value=bias)


@torch.inference_mode()
def greedy_plain(model: Any, token_ids: list[int], num_tokens: int) -> torch.Tensor:
    """As `greedy`, the log-probabilities after a plain prompt, without a mask: for models that take none."""
    rows: list[torch.Tensor] = []
    tokens = list(token_ids)
    for _ in range(num_tokens):
        rows.append(torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0, -1].float(), -1))
        tokens.append(int(rows[-1].argmax()))
    return torch.stack(rows)


@torch.inference_mode()
def greedy(model: Any, explained: dict[str, Any], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and their log-probabilities, ``(num_tokens, vocabulary)``, by full recomputation once
    for the prompt and token by token after it."""
    sequence, included = build_sequence(explained)
    count = len(sequence.token_ids)
    cache = DynamicCache()  # one that keeps all states, whatever windows the model has
    output = _forward(model, sequence.token_ids, sequence.sees, sequence.position_ids, cache)
    logits = output.logits[0, included[-1]]
    positions = list(sequence.position_ids)
    tokens: list[int] = []
    rows: list[torch.Tensor] = []
    for step in range(num_tokens):
        rows.append(torch.log_softmax(logits.float(), -1))
        tokens.append(int(logits.argmax()))
        if step + 1 == num_tokens:
            break
        included.append(count + step)
        positions.append(explained["next_position"] + step)
        output = _forward(model, tokens[-1:], [included], positions, cache)
        logits = output.logits[0, -1]
    return tokens, torch.stack(rows)


def _forward(
    model: Any, token_ids: list[int], sees: list[list[int]], position_ids: list[int], cache: DynamicCache
) -> Any:
    """The model's output for the last ``len(token_ids)`` tokens of those at ``position_ids``."""
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    positions = torch.tensor([position_ids[-len(token_ids) :]])
    with _alibi(model, sees, position_ids):
        return model(
            input_ids=torch.tensor([token_ids]),
            **({"position_ids": positions} if takes_positions else {}),
            attention_mask=masks(model, sees, position_ids),
            past_key_values=cache,
            use_cache=True,
        )
