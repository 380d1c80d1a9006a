"""A laboratory for encodings and repairs that no engine has yet: masks over states, in Transformers.

    python -m benchmarks.quality.lab --data FILE.jsonl --questions 0:40 --ways context,context+select:0.1

Passages and questions stand as in ``python -m benchmarks quality``; a way is an encoding and, after plus
signs, what is done to it. Here a new idea is a few lines, and one pass of the model tells what it is worth;
what is worth it is built, and measured by ``quality`` (docs/quality.md, "Log of what was tried").
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from benchmarks.quality.bootstrap import paired
from benchmarks.quality.metrics import Distribution, containment, divergence, f1, first_line
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import (
    LEFT_OUT,
    Passage,
    Question,
    among_others,
    read_questions,
    read_span,
    select,
)
from benchmarks.quality.rows import Row, Rows
from benchmarks.quality_models import find_model
from benchmarks.report import Table
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.plan import CachedSegment, Plan

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


# -- encodings: which states there are, and what each sees ---------------------------------------------


@dataclass(frozen=True, eq=False)
class Company:
    """Tokens that passages see while they are encoded, and no prompt includes: somebody else's text."""

    token_ids: Ints


def encode(model: Model, modules: Modules, name: str, argument: int, company: Company) -> States:
    """The states of all tokens under an encoding."""
    owner, order = modules.owner, np.arange(len(modules.owner))
    before = order[:, None] >= order[None, :]
    of_schema = owner[None, :] == SCHEMA
    own = owner[:, None] == owner[None, :]
    passage = owner[:, None] != SCHEMA
    if name in ("stranger", "prior", "near", "near-stranger"):
        text = company if name.endswith("stranger") else None
        return _encode_in_company(model, modules, argument, text, name.startswith("near"))
    real = ~np.isin(owner, list(modules.left_out))
    passages = range(modules.num_passages)
    neighbours = [max((p for p in range(n) if p not in modules.left_out), default=n) for n in passages]
    next_to = np.array([neighbours[n] if n >= 0 else n for n in owner])
    masks: dict[str, Callable[[], Bools]] = {
        "full": lambda: before & real[None, :],
        # Each passage in sight of the one before it in the prompt.
        "pairs": lambda: before & (own | of_schema | (passage & (next_to[:, None] == owner))),
        "isolated": lambda: before & own,
        "context": lambda: before & (own | of_schema),
        "scaffold": lambda: before & (own | of_schema | passage) & real[None, :],
        "sequence": lambda: before & (own | of_schema | passage),
        # Each passage in sight of so many before it, which are encoded in the same way.
        "chain": lambda: before & (own | of_schema | (passage & (owner[:, None] - owner <= argument))),
    }
    return model.compute(modules.token_ids, modules.position_ids, masks[name]())


def _encode_in_company(
    model: Model, modules: Modules, count: int, company: Company | None, near: bool = False
) -> States:
    """Each passage but the first in sight of the schema and of so many tokens right before it, which no
    prompt includes: somebody else's text, or (no company) the end of the passage before.

    With ``near`` all that stands right behind the schema's text; keys are rotated to their places after.
    """
    head = int(modules.tokens_of(0)[0])
    tokens, groups, places = [modules.token_ids], [modules.owner], [modules.position_ids.copy()]
    for number in range(1, modules.num_passages):
        own = modules.tokens_of(number)
        start = int(modules.position_ids[own[0]])
        before = modules.token_ids[modules.tokens_of(number - 1)] if company is None else company.token_ids
        taken = before[len(before) - min(count, start - head, len(before)) :]
        if near:
            start = head + len(taken)
            places[0][own] = start + np.arange(len(own))
        tokens.append(taken)
        places.append(np.arange(start - len(taken), start))
        groups.append(np.full(len(taken), number))
    token_ids, position_ids, group = map(np.concatenate, (tokens, places, groups))
    earlier = position_ids[:, None] >= position_ids[None, :]
    sees = earlier & ((group[:, None] == group[None, :]) | (group[None, :] == SCHEMA))
    states = model.compute(token_ids, position_ids, sees).at(slice(0, len(modules.token_ids)))
    return model.moved(states, modules.position_ids - places[0])


# -- repairs: which tokens are computed anew -----------------------------------------------------------


class Bench:
    """A set of passages, with the states that ways have of them."""

    def __init__(
        self, model: Model, modules: Modules, company: Company, left_out: dict[str, Modules] | None = None
    ):
        self.model, self.modules, self.company = model, modules, company
        self._encoded: dict[str, States] = {}
        others = (left_out or {}).items()
        self._moved = {name: Bench(model, modules, company) for name, modules in others}

    def at(self, gaps: str) -> Bench:
        """The same with gaps: ``behind:1000`` (`Modules.with_gaps`); in a schema of which the prompt leaves
        out ``one`` passage or ``half`` of them; itself for no name."""
        if not gaps:
            return self
        if gaps not in self._moved:
            place, _, gap = gaps.partition(":")
            modules = self.modules.with_gaps(place, int(gap))
            self._moved[gaps] = Bench(self.model, modules, self.company)
        return self._moved[gaps]

    def encoded(self, name: str) -> States:
        """An encoding without repairs."""
        if name not in self._encoded:
            kind, _, argument = name.partition(":")
            self._encoded[name] = encode(self.model, self.modules, kind, int(argument or 0), self.company)
        return self._encoded[name]

    def states(self, way: str) -> tuple[States, int]:
        """The states of a way, and how many of them are computed for a request.

        A way is an encoding and repairs, and behind an at sign gaps: ``context+link:16@behind:1000``.
        """
        way, _, gaps = way.partition("@")
        if gaps:
            return self.at(gaps).states(way)
        encoding, *parts = way.split("+")
        states = self.encoded(encoding)
        renewed: set[int] = set()
        temperature = 1.0
        for part in parts:
            name, _, argument = part.partition(":")
            if name == "cool":
                temperature = float(argument)
            else:
                renewed |= set(REPAIRS[name](self, encoding, float(argument or 0)).tolist())
        renewed &= set(self.modules.included.tolist())
        if renewed:
            states = self._renew(states, np.array(sorted(renewed)))
        if temperature != 1.0:
            # A softmax temperature for what questions see in passages: their keys, divided by it.
            keys = states.keys.clone()
            keys[:, :, modules_tokens(self.modules)] /= temperature
            states = States(keys, states.values)
        return states.at(self.modules.included), len(renewed)

    def _renew(self, states: States, renewed: Ints) -> States:
        """The same, some computed anew in sight of everything that is before them."""
        rest = np.setdiff1d(self.modules.included, renewed)
        order = np.concatenate([rest, renewed])
        sees = renewed[:, None] >= order[None, :]
        new = self.model.compute(
            self.modules.token_ids[renewed], self.modules.position_ids[renewed], sees, states.at(rest)
        )
        keys, values = states.keys.clone(), states.values.clone()
        keys[:, :, renewed], values[:, :, renewed] = new.keys, new.values
        return States(keys, values)

    def deviation(self, encoding: str, other: str, layer: int) -> NDArray[np.float32]:
        """How far each token's keys and values are from another encoding's at a layer, ``(tokens,)``."""
        a, b = self.encoded(encoding), self.encoded(other)
        total = torch.zeros(a.keys.shape[2])
        for one, two in ((a.keys, b.keys), (a.values, b.values)):
            apart = (one[layer].float() - two[layer].float()).pow(2).sum((0, 2))
            total += apart / two[layer].float().pow(2).sum((0, 2)).mean()
        return total.numpy()


def modules_tokens(modules: Modules) -> Ints:
    """Indices of all passages' tokens."""
    return np.flatnonzero(modules.owner != SCHEMA)


def _heads(bench: Bench, encoding: str, count: float) -> Ints:
    m = bench.modules
    # The first that is included has seen all that is before it, if it has seen the schema.
    passages = m.included_passages[0 if encoding == "isolated" else 1 :]
    return np.concatenate([m.tokens_of(p)[: int(count)] for p in passages])


def _ends(bench: Bench, encoding: str, count: float) -> Ints:
    m = bench.modules
    return np.concatenate([m.tokens_of(p)[-int(count) :] for p in m.included_passages[1:]])


def _tail(bench: Bench, encoding: str, _: float) -> Ints:
    return bench.modules.tail


def _selected(bench: Bench, encoding: str, share: float, other: str = "full") -> Ints:
    """CacheBlend: those whose states at the second layer are farthest from full prefill's."""
    tokens = modules_tokens(bench.modules)
    apart = bench.deviation(encoding, other, 1)[tokens]
    return np.sort(tokens[np.argsort(-apart)[: round(share * len(tokens))]])


def _selected_once(bench: Bench, encoding: str, share: float) -> Ints:
    """The same, chosen once: by what somebody else's text before it does to a passage."""
    return _selected(bench, encoding, share, "stranger:256")


REPAIRS: dict[str, Callable[[Bench, str, float], Ints]] = {
    "link": _heads,
    "ends": _ends,
    "tail": _tail,
    "select": _selected,
    "once": _selected_once,
}


# -- the command ---------------------------------------------------------------------------------------


def measure(
    model: Model,
    tokenizer: Any,
    maker: PromptMaker,
    questions: Sequence[Question],
    company: Sequence[Question],
    ways: Sequence[str],
    rows: Rows,
    most: int,
) -> None:
    """Ask each question in all ways that ``rows`` does not hold; full prefill always, to compare with."""
    done = {(row["way"], row["id"]) for row in rows.rows}
    bench: Bench | None = None
    digest = None
    for number, question in enumerate(questions, 1):
        missing = [way for way in ways if (way, question.id) not in done]
        if not missing:
            continue
        if digest != question.passages_digest:
            digest = question.passages_digest
            modules = Modules.of(maker.plan(question, "context"))
            others = next(q for q in company if not set(q.passages) & set(question.passages))
            stranger = Modules.of(maker.plan(others, "context"))
            left_out = {share: _left_out(maker, question, company, share) for share in LEFT_OUT[1:]}
            bench = Bench(model, modules, Company(stranger.token_ids[modules_tokens(stranger)]), left_out)
        assert bench is not None
        new = [s for s in maker.plan(question, "full").segments if not isinstance(s, CachedSegment)]
        token_ids = np.concatenate([np.asarray(s.token_ids) for s in new])
        gold = maker.answer_token_ids(question)
        asked = ["full", *missing]
        found = [bench.states(way) for way in asked]
        end = bench.modules.position_ids[-1]
        moved = [bench.at(way.partition("@")[2]).modules.position_ids[-1] - end for way in asked]
        starts = [new[0].first_position + int(shift) for shift in moved]
        logprobs, answers = model.ask([s for s, _ in found], starts, token_ids, gold, most)
        reference = Distribution.of(logprobs[0, 0].numpy(), 1024)
        made: list[Row] = []
        for index, way in enumerate(asked):
            if index == 0 and "full" in missing:
                continue
            text = first_line(tokenizer.decode(answers[index])) if most else ""
            picked = logprobs[index, torch.arange(len(gold)), torch.tensor(gold)]
            made.append(
                {
                    "way": way,
                    "id": question.id,
                    "nll": -float(picked.mean()),
                    "kl": divergence(reference, logprobs[index, 0].numpy()),
                    "f1": f1(text, question.answers),
                    "contains": containment(text, question.answers),
                    "renewed": found[index][1],
                    "tokens": len(bench.modules.token_ids),
                    "answer": text,
                }
            )
        rows.append([row for row in made if (row["way"], row["id"]) not in done])
        done |= {(row["way"], row["id"]) for row in made}
        print(f"{number} of {len(questions)}", file=sys.stderr, flush=True)


def _left_out(maker: PromptMaker, question: Question, others: Sequence[Question], share: str) -> Modules:
    """The modules of a schema that holds passages of another question too, which prompts leave out."""
    (asked,) = among_others([question], others, share)
    standing_before = dict(asked.left_out)
    passages: list[Passage] = []
    left_out = set()
    for number, passage in enumerate(question.passages):
        if number in standing_before:
            left_out.add(len(passages))
            passages.append(standing_before[number])
        passages.append(passage)
    return Modules.of(maker.plan(replace(question, passages=tuple(passages)), "context"), frozenset(left_out))


def table(rows: Sequence[Row], ways: Sequence[str], questions: Sequence[Question]) -> Table:
    """Means, and differences to full prefill with their intervals, of what was asked in every way."""
    ids = {q.id for q in questions}
    by_way: dict[str, dict[str, Row]] = {way: {} for way in dict.fromkeys(["full", *ways])}
    for row in rows:
        if row["way"] in by_way and row["id"] in ids:
            by_way[row["way"]][row["id"]] = row
    common = set.intersection(*(set(found) for found in by_way.values()))
    lines = []
    for way, found in by_way.items():
        share = np.mean([found[i]["renewed"] / found[i]["tokens"] for i in common])
        cells = [f"{np.mean([found[i]['kl'] for i in common]):.3f}"]
        for metric, scale, digits in (("nll", 1, 3), ("f1", 100, 1), ("contains", 100, 1)):
            against = paired(
                {i: found[i][metric] for i in common}, {i: by_way["full"][i][metric] for i in common}
            )
            cells.append(f"{scale * np.mean([found[i][metric] for i in common]):.{digits}f}")
            cells.append(against.text(digits, scale, sign=True) if against else "")
        lines.append((way, f"{share:.1%}", *cells))
    columns = ("way", "anew", "KL", "NLL", "to full", "F1", "to full", "contains", "to full")
    return Table("Laboratory", columns, tuple(lines), f"{len(common)} questions.")


def main() -> int:
    """Measure what is missing, print a table."""
    parser = argparse.ArgumentParser(description="Encodings and repairs as masks; see docs/quality.md.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="as for `quality` (default: the embedded model)")
    parser.add_argument("--ways", default="full,isolated,context,scaffold")
    parser.add_argument("--split", default="tune", choices=("tune", "report"))
    parser.add_argument("--questions", type=read_span, default=(0, 40), metavar="A:B")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--answer-tokens", type=int, default=32, help="0: no answers, only distributions")
    parser.add_argument("--out", type=Path, required=True, help="rows, added to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = find_model(args.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    everything = read_questions(args.data)
    questions = select(everything, args.split, args.questions)
    company = [q for q in everything if q.part == args.split]
    ways, rows = args.ways.split(","), Rows(args.out)
    model = Model(folder, getattr(torch, args.dtype))
    maker = PromptMaker(TextEncoder(tokenizer), 8192)
    measure(model, tokenizer, maker, questions, company, ways, rows, args.answer_tokens)
    print(table(rows.rows, ways, questions).to_markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
