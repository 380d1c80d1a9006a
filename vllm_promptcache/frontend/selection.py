"""Which tokens of schemas' units are selected: asked of the engine once, and remembered."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.frontend.errors import INSUFFICIENT_STORAGE, RefusedError
from vllm_promptcache.frontend.link import EngineLink
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.repairs.select import Selected, companies, most_deviant, num_selected

# Deviations remembered: units used last, with so many tokens together.
MAX_REMEMBERED_TOKENS = 4_000_000
# What the engine encodes for comparisons stands beside the KV cache: so many units at once.
BATCH = 8

# A unit and its company, where they stand.
Pair = tuple[Placement, Placement]


@dataclass(frozen=True, eq=False)
class Deviations:
    """How far the states of a unit's kept tokens move in company, ``(kept,)``, and what was selected by
    that for a share of them."""

    values: NDArray[np.float64]
    _selected: dict[Fraction, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    def most_deviant(self, unit: Unit, share: Fraction) -> NDArray[np.int64]:
        """The unit's selected tokens."""
        found = self._selected.get(share)
        if found is None:
            if len(self._selected) >= 16:
                self._selected.clear()
            found = self._selected[share] = most_deviant(unit, self.values, share)
        return found


class TokenSelection:
    """Selects tokens of units. The first request for a unit waits until the engine has compared it."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._companies: WeakKeyDictionary[SchemaLayout, Mapping[Unit, Unit]] = WeakKeyDictionary()
        self._known: OrderedDict[Pair, Deviations] = OrderedDict()
        self._num_tokens = 0
        self._asking = asyncio.Lock()

    async def select(
        self, layout: SchemaLayout, units: Iterable[Unit], share: Fraction, *, is_shared: bool = True
    ) -> Selected:
        """The selected tokens of a schema's units, as far as they have any.

        Unless ``is_shared``, what is encoded for it is found by nobody's requests.

        Raises:
            RefusedError: the engine has no room to compare them.
        """
        company = self._companies_in(layout)
        wanted = {
            unit: (unit.placement, company[unit].placement)
            for unit in units
            if unit in company and num_selected(int(unit.kept.sum()), share)
        }
        known = self._remembered(wanted.values())
        if len(known) < len(set(wanted.values())):
            async with self._asking:
                known |= self._remembered(wanted.values())
                missing = {pair: (unit, company[unit]) for unit, pair in wanted.items() if pair not in known}
                for first in range(0, len(missing), BATCH):
                    known |= await self._ask(dict(list(missing.items())[first : first + BATCH]), is_shared)
        return {unit: known[pair].most_deviant(unit, share) for unit, pair in wanted.items()}

    def _companies_in(self, layout: SchemaLayout) -> Mapping[Unit, Unit]:
        found = self._companies.get(layout)
        if found is None:
            found = self._companies[layout] = companies(layout.units)
        return found

    async def _ask(self, pairs: dict[Pair, tuple[Unit, Unit]], is_shared: bool) -> dict[Pair, Deviations]:
        """Have the engine compare units with themselves in company, and wait until it has."""
        found: dict[Pair, Deviations] = {}
        while True:
            left = {pair: units for pair, units in pairs.items() if pair not in found}
            texts = units_to_wire(unit for units in left.values() for unit in units)
            question = {"pairs": [list(pair) for pair in left], "texts": texts, "shared": is_shared}
            answer = await self._link.call("compare", question)
            for pair in left:
                name = f"{pair[0].digest} at {pair[0].position}"
                if name in answer["deviations"]:
                    found[pair] = Deviations(np.array(answer["deviations"][name], np.float64))
            if answer["refused"] is not None:
                what = f"tokens cannot be selected: {answer['refused']}"
                raise RefusedError(what, INSUFFICIENT_STORAGE, field="prompt_cache")
            if len(found) == len(pairs):
                self._remember(found)
                return found
            await self._link.pause()

    def _remembered(self, pairs: Iterable[Pair]) -> dict[Pair, Deviations]:
        found = {pair: self._known[pair] for pair in pairs if pair in self._known}
        for pair in found:
            self._known.move_to_end(pair)
        return found

    def _remember(self, found: Mapping[Pair, Deviations]) -> None:
        self._known.update(found)
        self._num_tokens += sum(len(deviations.values) for deviations in found.values())
        while self._num_tokens > MAX_REMEMBERED_TOKENS:
            _, oldest = self._known.popitem(last=False)
            self._num_tokens -= len(oldest.values)
