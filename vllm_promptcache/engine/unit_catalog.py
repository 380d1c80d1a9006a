"""The engine's copy of registered schemas' units, so that requests need only name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm_promptcache.blocks.composition import UnitText


class UnitCatalog:
    """Unit texts by digest, each as often as a registered schema holds it."""

    def __init__(self) -> None:
        self._texts: dict[str, UnitText] = {}
        self._holders: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._texts

    def define(self, texts: Mapping[str, UnitText]) -> None:
        """Add a schema's units; those known already gain a holder."""
        for digest, text in texts.items():
            self._texts.setdefault(digest, text)
            self._holders[digest] = self._holders.get(digest, 0) + 1

    def forget(self, digests: Iterable[str]) -> None:
        """Remove a schema's units; those without a holder are gone."""
        for digest in digests:
            self._holders[digest] -= 1
            if not self._holders[digest]:
                del self._holders[digest], self._texts[digest]

    def texts_of(self, digests: Iterable[str], given: Mapping[str, UnitText]) -> dict[str, UnitText]:
        """The texts of units and their contexts by digest.

        Raises:
            KeyError: a digest is neither known nor given.
        """
        found: dict[str, UnitText] = {}
        pending = list(digests)
        while pending:
            digest = pending.pop()
            if digest not in found:
                text = found[digest] = given[digest] if digest in given else self._texts[digest]
                pending += [seen.digest for seen in text.context]
        return found
