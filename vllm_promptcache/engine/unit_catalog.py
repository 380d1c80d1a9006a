"""The engine's copy of registered schemas' units, so that requests need only name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vllm_promptcache.blocks.composition import UnitText


class UnitCatalog:
    """Unit texts by digest, each as often as a registered schema holds it.

    Some holders share their units with all tenants, and some want their states to go when nobody has used
    them for so many seconds.
    """

    def __init__(self) -> None:
        self._texts: dict[str, UnitText] = {}
        self._holders: dict[str, int] = {}
        self._sharing: dict[str, int] = {}
        self._ttls: dict[str, float] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._texts

    def define(
        self, texts: Mapping[str, UnitText], *, shared: bool = False, ttl: float | None = None
    ) -> None:
        """Add a schema's units; those known already gain a holder. Of several ``ttl`` the last says."""
        for digest, text in texts.items():
            self._texts.setdefault(digest, text)
            self._holders[digest] = self._holders.get(digest, 0) + 1
            if shared:
                self._sharing[digest] = self._sharing.get(digest, 0) + 1
            self._ttls.pop(digest, None)
            if ttl is not None:
                self._ttls[digest] = ttl

    def forget(self, digests: Iterable[str], *, shared: bool = False) -> None:
        """Remove a schema's units; those without a holder are gone. ``shared`` is as it was defined."""
        for digest in digests:
            self._holders[digest] -= 1
            if shared:
                self._sharing[digest] -= 1
                if not self._sharing[digest]:
                    del self._sharing[digest]
            if not self._holders[digest]:
                del self._holders[digest], self._texts[digest]
                self._ttls.pop(digest, None)

    def is_shared(self, digest: str) -> bool:
        """Whether all tenants share the unit's states."""
        return digest in self._sharing

    def ttl_of(self, digest: str) -> float | None:
        """After how many seconds without use the unit's states go; None for never."""
        return self._ttls.get(digest)

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
