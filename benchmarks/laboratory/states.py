"""Tokens of modules, and their states under any mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import Passage, Question
from vllm_promptcache.contract.plan import CachedSegment, Plan

SCHEMA = -1
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Modules:
    """What stands before the question: tokens ``(tokens,)`` by position, each of the schema or a passage."""

    token_ids: Ints
    position_ids: Ints
    owner: Ints
    left_out: frozenset[int] = frozenset()

    @classmethod
    def of(cls, plan: Plan, left_out: frozenset[int] = frozenset()) -> Modules:
        """The reused segments of an unrepaired plan over a schema of passages.

        Passages that are ``left_out`` are in the schema and encoded; the prompt does not include them.
        """
        segments = [s for s in plan.segments if isinstance(s, CachedSegment)]
        names = {unit.id: number for number, unit in enumerate(u for u in plan.units if u.context)}
        owner = [np.full(s.num_tokens, names.get(s.unit.id, SCHEMA)) for s in segments]
        return cls(
            np.concatenate([s.unit.token_ids[s.start : s.end] for s in segments]),
            np.concatenate([s.unit.position_ids[s.start : s.end] for s in segments]),
            np.concatenate(owner),
            left_out,
        )

    def with_gaps(self, place: str, gap: int) -> Modules:
        """The same with positions that nothing takes: before the ``first`` passage, ``between`` any two, or
        ``behind`` the last one, where the question moves too."""
        moved = self.position_ids.copy()
        if place == "between":
            moved += np.maximum.accumulate(self.owner) * (self.owner != SCHEMA) * gap
            moved[self.tail] += (self.num_passages - 1) * gap
        else:
            start = (
                self.tokens_of(0)[0] if place == "first" else self.tokens_of(self.num_passages - 1)[-1] + 1
            )
            moved[start:] += gap
        return Modules(self.token_ids, moved, self.owner, self.left_out)

    @classmethod
    def of_question(cls, maker: PromptMaker, question: Question) -> Modules:
        """All that is in a question's schema, what its prompt leaves out marked."""
        standing_before = dict(question.left_out)
        passages: list[Passage] = []
        left_out = set()
        for number, passage in enumerate(question.passages):
            if number in standing_before:
                left_out.add(len(passages))
                passages.append(standing_before[number])
            passages.append(passage)
        everything = replace(question, passages=tuple(passages), left_out=())
        return cls.of(maker.plan(everything, "context"), frozenset(left_out))

    @property
    def in_passages(self) -> Ints:
        """Indices of all passages' tokens."""
        return np.flatnonzero(self.owner != SCHEMA)

    @property
    def included(self) -> Ints:
        """Indices of the tokens that prompts include."""
        return np.flatnonzero(~np.isin(self.owner, list(self.left_out)))

    @property
    def num_passages(self) -> int:
        """How many passages there are."""
        return int(self.owner.max()) + 1

    @property
    def included_passages(self) -> list[int]:
        """The passages that prompts include."""
        return [p for p in range(self.num_passages) if p not in self.left_out]

    def tokens_of(self, passage: int) -> Ints:
        """Indices of a passage's tokens."""
        return np.flatnonzero(self.owner == passage)

    @property
    def tail(self) -> Ints:
        """Indices of the schema's own tokens behind passages."""
        return np.flatnonzero((self.owner == SCHEMA) & (np.arange(len(self.owner)) > self.tokens_of(0)[0]))


@dataclass(frozen=True, eq=False)
class States:
    """Keys (rotated) and values of tokens at all layers, each ``(layers, heads, tokens, size)``."""

    keys: torch.Tensor
    values: torch.Tensor

    def at(self, tokens: Any) -> States:
        """Those of some tokens."""
        return States(self.keys[:, :, tokens], self.values[:, :, tokens])


class Model:
    """A Transformers model that computes states under any mask."""

    def __init__(self, folder: str, dtype: torch.dtype):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.dtype = dtype

    @torch.inference_mode()
    def compute(
        self, token_ids: Ints, position_ids: Ints, sees: Bools, before: States | None = None
    ) -> States:
        """States of tokens that see some of those before and of their own, ``sees`` ``(tokens, all)``."""
        mask = torch.zeros(sees.shape, dtype=self.dtype)
        mask[~torch.from_numpy(sees)] = torch.finfo(self.dtype).min
        cache = self.cache([before] if before is not None else [])
        self.model(
            input_ids=torch.from_numpy(token_ids)[None],
            position_ids=torch.from_numpy(position_ids)[None],
            attention_mask=mask[None, None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        past = 0 if before is None else before.keys.shape[2]
        found: list[Any] = list(cache.layers)
        layers = [(layer.keys[0, :, past:], layer.values[0, :, past:]) for layer in found]
        return States(torch.stack([k for k, _ in layers]), torch.stack([v for _, v in layers]))

    def moved(self, states: States, distances: Ints) -> States:
        """Keys rotated on by so many positions each, ``(tokens,)``."""
        cos, sin = self.model.model.rotary_emb(torch.ones(1), torch.from_numpy(distances)[None])
        keys = states.keys.float()
        half = keys.shape[-1] // 2
        turned = torch.cat([-keys[..., half:], keys[..., :half]], -1)
        return States((keys * cos[0] + turned * sin[0]).to(self.dtype), states.values)

    def cache(self, rows: Sequence[States]) -> DynamicCache:
        """States of several prompts of the same length as a cache of that batch."""
        cache = DynamicCache()
        for layer in range(self.model.config.num_hidden_layers if rows else 0):
            cache.update(
                torch.stack([row.keys[layer] for row in rows]),
                torch.stack([row.values[layer] for row in rows]),
                layer,
            )
        return cache

    @torch.inference_mode()
    def ask(
        self,
        rows: Sequence[States],
        first_positions: Sequence[int],
        token_ids: Ints,
        gold: Sequence[int],
        most: int,
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Log-probabilities ``(rows, gold tokens, vocabulary)`` of a question's gold answer behind each row
        of states, and up to ``most`` greedy tokens. The question starts at a position for each row."""
        cache, count = self.cache(rows), len(token_ids)
        fed = torch.tensor([*token_ids.tolist(), *gold[:-1]]).expand(len(rows), -1)
        starts = torch.tensor(first_positions)[:, None]
        positions = starts + torch.arange(fed.shape[1])
        kept = len(gold)
        logits = self.model(
            input_ids=fed, position_ids=positions, past_key_values=cache, logits_to_keep=kept
        ).logits
        logprobs = torch.log_softmax(logits.float(), -1)
        answers: list[list[int]] = [[] for _ in rows]
        if most:
            if kept > 1:
                cache.crop(1 - kept)
            end = self.model.generation_config.eos_token_id
            ends = set(end if isinstance(end, list) else [end])
            next_ids = logprobs[:, 0].argmax(-1)
            for step in range(most):
                for answer, token in zip(answers, next_ids.tolist(), strict=True):
                    if not (answer and answer[-1] in ends):
                        answer.append(token)
                if step + 1 == most or all(answer[-1] in ends for answer in answers):
                    break
                out = self.model(
                    input_ids=next_ids[:, None], position_ids=starts + count + step, past_key_values=cache
                )
                next_ids = out.logits[:, -1].argmax(-1)
            answers = [[t for t in answer if t not in ends] for answer in answers]
        return logprobs, answers
