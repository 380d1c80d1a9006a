"""Eviction: which of the units that nobody uses goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from vllm_promptcache.blocks.unit_key import UnitKey


class EvictionPolicy(Protocol):
    """An order of units that may go. Every call takes the same time however many there are."""

    def offered(self, key: UnitKey) -> None:
        """The unit may go, from now on. No change if it might before."""

    def taken(self, key: UnitKey) -> None:
        """The unit is used again, or held. No change if it might not go before."""

    def evicted(self, key: UnitKey) -> None:
        """The unit went."""

    def __iter__(self) -> Iterator[UnitKey]:
        """The units that may go, the first to go first. Nothing may change meanwhile."""

    def __len__(self) -> int: ...


class LeastRecentlyUsed:
    """The one goes first that has been idle for longest."""

    def __init__(self) -> None:
        self._keys: OrderedDict[UnitKey, None] = OrderedDict()

    def offered(self, key: UnitKey) -> None:
        """See ``EvictionPolicy``."""
        self._keys.setdefault(key)

    def taken(self, key: UnitKey) -> None:
        """See ``EvictionPolicy``."""
        self._keys.pop(key, None)

    evicted = taken

    def __iter__(self) -> Iterator[UnitKey]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
