"""The tally: what became of each tenant's requests and units, counted since the start."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vllm_promptcache.records.shares import tenant_name

# Tenants that are counted apart: of more, those that were not heard of for longest are counted together.
MAX_TENANTS = 1000
OTHERS = "others"


class Reason(StrEnum):
    """Why a unit's states went."""

    BLOCKS = "blocks"  # a request's or a unit's blocks were not to be had otherwise
    PREFIX = "prefix"  # or only from the prefix cache of plain requests
    ROWS = "rows"  # too many rows beside the KV cache
    NUMBER = "number"  # too many units
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"  # its text is registered no more, or its unit went
    RESET = "reset"


@dataclass
class TenantCounts:
    """Counts over one tenant's composed requests and units.

    Attributes:
        requests: those whose first output was made.
        hits: modules that were resident when they were asked for, or that another request had asked for.
        loads: modules that were loaded from records for a request.
        misses: modules that were encoded for one.
        tokens_saved: tokens of prompts that were not computed.
        encodings: units that were encoded, for a request or ahead of any.
        evictions: units whose states went, by reason.
    """

    requests: int = 0
    hits: int = 0
    loads: int = 0
    misses: int = 0
    tokens_saved: int = 0
    encodings: int = 0
    evictions: dict[str, int] = field(default_factory=lambda: {reason.value: 0 for reason in Reason})

    def add(self, other: TenantCounts) -> None:
        """Count what another tenant had as well."""
        for name, count in vars(other).items():
            if isinstance(count, int):
                setattr(self, name, getattr(self, name) + count)
        for reason, count in other.evictions.items():
            self.evictions[reason] += count

    def to_plain(self) -> dict[str, Any]:
        """In JSON's types."""
        return {**vars(self), "evictions": dict(self.evictions)}


class Tally:
    """Counts by tenant; None are all who have sent no salt."""

    def __init__(self) -> None:
        self.total = TenantCounts()
        self._by_tenant: OrderedDict[str | None, TenantCounts] = OrderedDict()
        self._others = TenantCounts()

    def of(self, tenant: str | None) -> TenantCounts:
        """What is counted of a tenant; to be added to."""
        counts = self._by_tenant.get(tenant)
        if counts is None:
            counts = self._by_tenant[tenant] = TenantCounts()
            while len(self._by_tenant) > MAX_TENANTS:
                self._others.add(self._by_tenant.popitem(last=False)[1])
        self._by_tenant.move_to_end(tenant)
        return counts

    def seen(self, tenant: str | None) -> TenantCounts:
        """What is counted of a tenant; nothing where it is not known."""
        return self._by_tenant.get(tenant) or TenantCounts()

    def count_request(self, tenant: str | None, report: dict[str, int]) -> None:
        """A request's first output is made."""
        for counts in (self.of(tenant), self.total):
            counts.requests += 1
            counts.hits += report["modules_resident"]
            counts.loads += report["modules_loaded"]
            counts.misses += report["modules_encoded"]
            counts.tokens_saved += report["tokens_reused"] + report["tokens_found"]

    def count_encoding(self, tenant: str | None) -> None:
        """A unit was encoded."""
        for counts in (self.of(tenant), self.total):
            counts.encodings += 1

    def count_eviction(self, tenant: str | None, reason: Reason) -> None:
        """A unit's states went."""
        for counts in (self.of(tenant), self.total):
            counts.evictions[reason] += 1

    def named(self) -> dict[str, TenantCounts]:
        """All that is counted, by what tenants are called."""
        found = {tenant_name(tenant): counts for tenant, counts in self._by_tenant.items()}
        return {**found, OTHERS: self._others} if self._others.requests else found
