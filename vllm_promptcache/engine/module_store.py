"""The module store: what the scheduler keeps of units, in four parts."""

from __future__ import annotations

from collections.abc import Callable

from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.engine.backlog import Backlog
from vllm_promptcache.engine.eviction import EvictionPolicy, LeastRecentlyUsed
from vllm_promptcache.engine.known_units import KnownUnits
from vllm_promptcache.engine.pins import Pins
from vllm_promptcache.engine.resident_units import ResidentUnits
from vllm_promptcache.records.shares import Shares


class ModuleStore:
    """Which units there are (``known``), whose states are there (``resident``), what stays (``pins``), and
    what is to be made resident when there is time (``backlog``)."""

    def __init__(
        self,
        block_pool: BlockPool,
        block_size: int,
        pin_limit: int,
        num_positions: int,
        window: int = 0,
        policy: Callable[[Shares], EvictionPolicy] = LeastRecentlyUsed,
        tenant_fraction: float = 1.0,
    ):
        self.block_pool = block_pool
        self.block_size = block_size
        self.window = window
        self.known = KnownUnits(block_size, num_positions, window)
        self.resident = ResidentUnits(self.known, block_pool, policy, tenant_fraction)
        self.pins = Pins(self.known, block_pool, pin_limit, tenant_fraction)
        self.backlog = Backlog(self.known)
