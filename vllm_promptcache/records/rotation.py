"""Rotation: keys that were encoded at one position, as they would have been at another.

A key that a rotary module turned at position ``p`` is turned back by the cosines and sines that the module
has for ``p``, and on by those for the new position. They are the model's own, rounding and scaling
included, so this holds for every module whose tables depend on the position alone: partial, linear,
Llama-3 and YaRN scaling, NeoX and GPT-J style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


@dataclass(frozen=True, eq=False)
class RotaryTable:
    """A rotary module's cosines and sines by position, each ``(positions, pairs)``, as the model uses them.

    ``interleaved`` says which dimensions form a pair: ``(2i, 2i + 1)``, as in GPT-J, or ``(i, i + pairs)``,
    as in NeoX. ``2 * pairs`` dimensions of a head are rotated, from the one numbered ``first`` on, the rest
    is left alone.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool
    first: int = 0

    @property
    def num_positions(self) -> int:
        """Positions that the model has."""
        return self.cos.shape[0]

    def between(self, origin: torch.Tensor, target: torch.Tensor) -> Turn:
        """What turns keys at positions ``origin`` into keys at ``target``, both int64, ``(tokens,)``."""
        cos, sin = self.cos[origin].float(), self.sin[origin].float()
        new_cos, new_sin = self.cos[target].float(), self.sin[target].float()
        # A table with an attention factor has it in both: it falls out of the quotient.
        norm = cos * cos + sin * sin
        return Turn(
            (new_cos * cos + new_sin * sin) / norm,
            (new_sin * cos - new_cos * sin) / norm,
            self.interleaved,
            self.first,
        )


class _Work(NamedTuple):
    """What turning keys of one shape takes: cosines for each number, sines for each pair of them; memory for
    the keys in float32, and for them turned."""

    cos: torch.Tensor
    sin: torch.Tensor
    keys: torch.Tensor
    turned: torch.Tensor


@dataclass(frozen=True, eq=False)
class Turn:
    """A rotation of some tokens' keys; ``cos`` and ``sin`` are float32, ``(tokens, pairs)``."""

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool
    first: int = 0
    _works: dict[tuple[tuple[int, ...], int], _Work] = field(default_factory=dict, repr=False)

    def apply(self, keys: torch.Tensor, tokens_at: int = 0) -> torch.Tensor:
        """Keys ``(tokens, …, dimensions)`` turned: worked out in float32, rounded once to their dtype.

        ``tokens_at`` is the dimension of tokens, if it is another than the first.
        """
        work = self._work_on(keys, tokens_at)
        width = work.turned.shape[-1]
        first, second = self._halves(width // 2)
        begin, end = self.first, self.first + width
        work.keys.copy_(keys[..., begin:end])
        torch.mul(work.keys, work.cos, out=work.turned)
        work.turned[..., first].addcmul_(work.keys[..., second], work.sin, value=-1)
        work.turned[..., second].addcmul_(work.keys[..., first], work.sin)
        moved = torch.empty_like(keys)
        moved[..., begin:end] = work.turned
        if width < keys.shape[-1]:
            moved[..., :begin], moved[..., end:] = keys[..., :begin], keys[..., end:]
        return moved

    def _halves(self, pairs: int) -> tuple[slice, slice]:
        """Where the first and the second dimensions of pairs are."""
        if self.interleaved:
            return slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        return slice(pairs), slice(pairs, 2 * pairs)

    def _work_on(self, keys: torch.Tensor, tokens_at: int) -> _Work:
        """Memory for keys of this shape, taken once: layers have keys of few shapes."""
        shape = (*keys.shape[:-1], 2 * self.cos.shape[-1])
        found = self._works.get((shape, tokens_at))
        if found is None:
            found = self._works[shape, tokens_at] = self._make_work(shape, tokens_at)
        return found

    def _make_work(self, shape: tuple[int, ...], tokens_at: int) -> _Work:
        # Cosines and sines for every head: passes over whole keys are then over one run of memory.
        pairs = shape[-1] // 2
        first, second = self._halves(pairs)
        by_token = (shape[tokens_at], *[1] * (len(shape) - tokens_at - 2), pairs)
        cos = torch.empty(*shape[tokens_at:], device=self.cos.device)
        cos[..., first] = cos[..., second] = self.cos.reshape(by_token)
        sin = self.sin.reshape(by_token).expand(*shape[tokens_at:-1], pairs).contiguous()
        floats, turned = (torch.empty(*shape, device=self.cos.device) for _ in range(2))
        return _Work(cos, sin, floats, turned)


@dataclass(frozen=True, eq=False)
class Rotation:
    """How a model's layers rotate what they hand to their caches.

    ``tables`` has for each layer its table, None where it has no positions. ``rotates_value`` are the
    layers whose second row is the rotated one: those of latent attention, whose first is position-free.
    """

    tables: tuple[RotaryTable | None, ...]
    rotates_value: tuple[bool, ...]

    def begin(self, origin: torch.Tensor, target: torch.Tensor) -> Move:
        """A move of tokens from some positions to others, both int64, ``(tokens,)``."""
        turns: dict[int, Turn] = {}
        for table in self.tables:
            if table is not None and id(table) not in turns:
                turns[id(table)] = table.between(origin, target)
        return Move(
            tuple(None if t is None else turns[id(t)] for t in self.tables),
            self.rotates_value,
        )


@dataclass(frozen=True, eq=False)
class Move:
    """Tokens' states of all layers moved by differences of positions."""

    turns: tuple[Turn | None, ...]
    rotates_value: tuple[bool, ...]

    def apply(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's rows ``(tokens, …)`` of the tokens, moved."""
        turn = self.turns[layer]
        if turn is None:
            return key, value
        return (key, turn.apply(value)) if self.rotates_value[layer] else (turn.apply(key), value)

    def apply_to_all(
        self, layers: Sequence[int], key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows ``(layers, tokens, …)`` of some layers, moved; at once where they have one table."""
        first = layers[0]
        how = self.turns[first], self.rotates_value[first]
        if any((self.turns[layer], self.rotates_value[layer]) != how for layer in layers):
            pairs = [self.apply(layer, key[i], value[i]) for i, layer in enumerate(layers)]
            return torch.stack([key for key, _ in pairs]), torch.stack([value for _, value in pairs])
        turn, rotates_value = how
        if turn is None:
            return key, value
        return (key, turn.apply(value, 1)) if rotates_value else (turn.apply(key, 1), value)


def split_table(cos_sin: torch.Tensor, interleaved: bool) -> RotaryTable:
    """A table from vLLM's form: cosines and sines beside each other, ``(positions, 2 * pairs)``."""
    cos, sin = cos_sin.chunk(2, dim=-1)
    return RotaryTable(cos, sin, interleaved)


def check_positions(rotation: Rotation, positions: Sequence[int]) -> None:
    """Check that all tables have positions.

    Raises:
        ValueError: one has not.
    """
    ends = [table.num_positions for table in rotation.tables if table is not None]
    if ends and max(positions) >= min(ends):
        raise ValueError(f"position {max(positions)} is past the {min(ends)} that the model rotates for")
