"""Shares: what each tenant holds of something that all use, and who holds more than its share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from hashlib import blake2b


class Shares:
    """Amounts by tenant; None are all who have sent no salt. Only who holds something is there.

    A tenant may hold more than ``limit`` while nobody else wants it: it is then the first to lose some.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self.limit = limit
        self.amounts: dict[Hashable, int] = {}
        self._over: dict[Hashable, None] = {}

    def add(self, tenant: Hashable, amount: int) -> None:
        """A tenant holds so much more, or less."""
        held = self.amounts.get(tenant, 0) + amount
        assert held >= 0, (tenant, held)
        if held:
            self.amounts[tenant] = held
        else:
            self.amounts.pop(tenant, None)
        if held > self.limit:
            self._over.setdefault(tenant)
        else:
            self._over.pop(tenant, None)

    def is_over(self, tenant: Hashable, more: int = 0) -> bool:
        """Whether a tenant would hold more than its share with so much ``more``."""
        return self.amounts.get(tenant, 0) + more > self.limit

    @property
    def over(self) -> Iterator[Hashable]:
        """Who holds more than its share: at most as many as shares fit into the whole."""
        return iter(self._over)


def tenant_name(tenant: str | None) -> str:
    """What a tenant is called where others may read it: a digest of its salt, or nothing without one."""
    return "" if tenant is None else blake2b(tenant.encode(), digest_size=8).hexdigest()
