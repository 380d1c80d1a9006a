"""A set of passages on the bench, and repairs: which tokens are computed anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.laboratory.encodings import Company, encode
from benchmarks.laboratory.states import Ints, Model, Modules, States


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
            keys[:, :, self.modules.in_passages] /= temperature
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
    tokens = bench.modules.in_passages
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
