"""What the engine calls a unit: a placement, and what separates states of the same text there."""

from __future__ import annotations

from typing import NamedTuple

# Stands for all of a unit where the end of its head is asked for.
WHOLE = 0


class UnitKey(NamedTuple):
    """A unit's states in the engine. Hashed often, so it is a plain tuple.

    Attributes:
        digest: the unit's text and what it has seen, wherever it stands.
        position: where its first token stands.
        adapter: what tells the LoRA adapter that it is encoded with from others; None for none.
        tenant: the request's ``cache_salt``.
        part: ``WHOLE``, or the token index at which a head of the unit ends (``blocks.heads``).
    """

    digest: str
    position: int
    adapter: tuple[str, ...] | None = None
    tenant: str | None = None
    part: int = WHOLE

    @property
    def whole(self) -> UnitKey:
        """The unit that this is a part of."""
        return self if self.part == WHOLE else self._replace(part=WHOLE)

    def head(self, end: int) -> UnitKey:
        """The unit's head that ends at token ``end``."""
        return self._replace(part=end)

    def beside(self, digest: str, offset: int) -> UnitKey:
        """Another unit, for the same adapter and tenant, ``offset`` positions further on."""
        return UnitKey(digest, self.position + offset, self.adapter, self.tenant)
