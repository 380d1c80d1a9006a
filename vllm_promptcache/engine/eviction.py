"""Eviction: which of the units that nobody uses goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Protocol

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.records.shares import Shares


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

    def of(self, tenant: str | None) -> Iterator[UnitKey]:
        """As ``__iter__``, one tenant's."""

    def __len__(self) -> int: ...


class LeastRecentlyUsed:
    """The one goes first that has been idle for longest; but those first whose tenants hold more than their
    share of what ``shares`` count."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._keys: OrderedDict[UnitKey, None] = OrderedDict()
        self._by_tenant: dict[Hashable, OrderedDict[UnitKey, None]] = {}

    def offered(self, key: UnitKey) -> None:
        """See ``EvictionPolicy``."""
        if key not in self._keys:
            self._keys[key] = None
            self._by_tenant.setdefault(key.tenant, OrderedDict())[key] = None

    def taken(self, key: UnitKey) -> None:
        """See ``EvictionPolicy``."""
        if key in self._keys:
            del self._keys[key]
            of_tenant = self._by_tenant[key.tenant]
            del of_tenant[key]
            if not of_tenant:
                del self._by_tenant[key.tenant]

    evicted = taken

    def __iter__(self) -> Iterator[UnitKey]:
        over = set(self._shares.over)
        for tenant in over:
            yield from self._by_tenant.get(tenant, ())
        for key in self._keys:
            if key.tenant not in over:
                yield key

    def of(self, tenant: str | None) -> Iterator[UnitKey]:
        """See ``EvictionPolicy``."""
        return iter(self._by_tenant.get(tenant, ()))

    def __len__(self) -> int:
        return len(self._keys)
