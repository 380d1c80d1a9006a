"""Comparisons: how far a unit's states move when it is encoded in company, for selected tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vllm_promptcache.blocks.composition import Seen
from vllm_promptcache.blocks.heads import COPY
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.blocks.wire import keys_from_wire, texts_from_wire
from vllm_promptcache.engine.module_store import ModuleStore, Residency
from vllm_promptcache.engine.unit_catalog import UnitCatalog

# Calls a method of all workers by its name: ``(method, args=...)``, the answers in a list.
CallWorkers = Callable[..., list[Any]]

# The adapter of units that are encoded for nothing but a comparison: no request has one without a path.
APART = ("", "")


class Comparison:
    """Compares units' copies with copies that were encoded with one more unit as context.

    The copy of the unit itself stays: requests whose tokens were selected by it will ask for it.
    """

    def __init__(
        self,
        store: ModuleStore,
        catalog: UnitCatalog,
        start_encoding: Callable[[Iterable[UnitKey]], None],
    ):
        self._store = store
        self._catalog = catalog
        self._start_encoding = start_encoding

    def compare(self, payload: dict[str, Any], call_workers: CallWorkers) -> dict[str, Any]:
        """The ``deviations`` of units in ``pairs`` (of digests: a unit's, its company's), as far as both
        are encoded; those that are not will be. ``refused`` says why one never can be.

        ``texts`` are of all units in pairs and in their contexts. Unless ``shared``, no request finds
        what is encoded here.
        """
        adapter = None if payload["shared"] else APART
        given = texts_from_wire(payload["texts"])
        deviations: dict[str, list[float]] = {}
        absent: list[UnitKey] = []
        try:
            for pair in payload["pairs"]:
                key, company = keys_from_wire(pair, adapter)
                name, digest, alone = f"{key.digest} at {key.position}", key.digest, key.head(COPY)
                accompanied = alone._replace(digest=f"{digest} after {company.digest} at {company.position}")
                if all(self._is_resident(key) for key in (alone, accompanied)):
                    parts = call_workers("compare_module_states", args=(alone, accompanied))
                    deviations[name] = _deviations(parts)
                    self._store.discard(accompanied)
                    if not payload["shared"]:
                        self._store.discard(alone)
                    continue
                texts = self._catalog.texts_of([digest, company.digest], given)
                seen = Seen(company.digest, company.position - key.position)
                text = texts[digest]
                texts[accompanied.digest] = replace(text, context=(*text.context, seen))
                for copy in (alone, accompanied):
                    absent.append(self._store.name(copy, texts).key)
                self._store.check_room_alone(company)
                self._store.check_room_alone(accompanied)
            self._start_encoding(absent)
        except ValueError as error:
            return {"deviations": deviations, "refused": str(error)}
        finally:
            for key in absent:
                self._store.unname(key)
        return {"deviations": deviations, "refused": None}

    def _is_resident(self, key: UnitKey) -> bool:
        unit = self._store.units.get(key)
        return unit is not None and unit.residency is Residency.RESIDENT


def _deviations(parts: Sequence[Sequence[tuple[Sequence[float], float]]]) -> list[float]:
    """For each token its distance as a part of the mean squared norm, of keys and of values, summed.

    ``parts`` has for each worker, which may hold some of the heads only, tokens' squared distances and
    the sum of all squared norms: of keys, then of values.
    """
    found = np.zeros(len(parts[0][0][0]))
    for shares in zip(*parts, strict=True):
        distances = np.sum([share[0] for share in shares], axis=0)
        norms = sum(share[1] for share in shares)
        found += distances * (len(found) / max(norms, 1e-30))
    return [float(deviation) for deviation in found]
