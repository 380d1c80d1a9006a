"""The oracle: exact logits of a composed prompt from nothing but what `explain` prints.

Transformers, float32, explicit positions and an explicit mask: the definition that everything else is
held against. It shares no code with the product.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache


def load_reference_model(path: Any) -> Any:
    """A Transformers model that takes an explicit four-dimensional mask."""
    kind = model_class(AutoConfig.from_pretrained(path))
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


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


@torch.inference_mode()
def greedy(model: Any, explained: dict[str, Any], num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and their log-probabilities, ``(num_tokens, vocabulary)``, by full recomputation once
    for the prompt and token by token after it."""
    sequence, included = build_sequence(explained)
    count = len(sequence.token_ids)
    output = model(
        input_ids=torch.tensor([sequence.token_ids]),
        position_ids=torch.tensor([sequence.position_ids]),
        attention_mask=masks(model, sequence.sees, sequence.position_ids),
        past_key_values=DynamicCache(),  # one that keeps all states, whatever windows the model has
        use_cache=True,
    )
    cache, logits = output.past_key_values, output.logits[0, included[-1]]
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
        output = model(
            input_ids=torch.tensor([[tokens[-1]]]),
            position_ids=torch.tensor([positions[-1:]]),
            attention_mask=masks(model, [included], positions),
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[0, -1]
    return tokens, torch.stack(rows)
