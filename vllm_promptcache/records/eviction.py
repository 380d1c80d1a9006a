"""Which record goes first: what is asked for least, weighted by what it would cost to have again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_promptcache.records.shares import Shares

# A context of so many tokens makes encoding a token cost twice as much.
TOKENS_OF_CONTEXT_PER_TOKEN = 4096


def encoding_cost(num_tokens: int, num_context_tokens: int) -> float:
    """What it costs to encode a unit, in tokens without a context."""
    seen = num_context_tokens + num_tokens / 2
    return num_tokens * (1 + seen / TOKENS_OF_CONTEXT_PER_TOKEN)


@dataclass(slots=True)
class _Entry:
    num_bytes: int
    cost: float
    uses: int
    priority: float
    turn: int
    tenant: str
    holds: int = 0


Heap = list[tuple[float, int, str]]


class GreedyDual:
    """Greedy-Dual-Size-Frequency (Cherkasova 1998): what is cheap, large, or seldom used goes first.

    An entry's priority is the clock when it was last used, plus its uses times its cost for a byte. The clock
    goes on to the priority of what is evicted, so what is not used any more ages. Entries that are as often
    used and as expensive go in the order of their last use. A call takes logarithmic time.

    Entries of tenants that hold more than ``limit`` bytes go before all others.
    """

    def __init__(self, limit: float = float("inf")) -> None:
        self._entries: dict[str, _Entry] = {}
        self._heap: Heap = []
        self._heaps: dict[str, Heap] = {}
        self._clock = 0.0
        self._turn = 0
        self.num_bytes = 0
        self.shares = Shares(limit)
        self.numbers = Shares()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def add(self, name: str, num_bytes: int, cost: float, uses: int = 1, tenant: str = "") -> None:
        """A new entry. No change if it is there."""
        if name in self._entries:
            return
        self._entries[name] = _Entry(num_bytes, cost, uses - 1, 0.0, 0, tenant)
        self.num_bytes += num_bytes
        self.shares.add(tenant, num_bytes)
        self.numbers.add(tenant, 1)
        self.use(name)

    def use(self, name: str) -> None:
        """An entry was used."""
        entry = self._entries[name]
        entry.uses += 1
        self._turn += 1
        entry.turn = self._turn
        entry.priority = self._clock + entry.uses * entry.cost / max(entry.num_bytes, 1)
        self._offer(name, entry)

    def remove(self, name: str) -> None:
        """An entry is gone. No change if it was not there."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes
            self.shares.add(entry.tenant, -entry.num_bytes)
            self.numbers.add(entry.tenant, -1)
            if entry.tenant not in self.numbers.amounts:
                self._heaps.pop(entry.tenant, None)

    def hold(self, name: str) -> None:
        """Keep an entry until it is let go as often."""
        self._entries[name].holds += 1

    def let_go(self, name: str) -> None:
        """See ``hold``."""
        entry = self._entries[name]
        entry.holds -= 1
        assert entry.holds >= 0
        if not entry.holds:
            self._offer(name, entry)

    def evict(self) -> str | None:
        """Remove the entry that goes first and is not held, and say which; None if there is none."""
        for tenant in list(self.shares.over):
            if (name := self.evict_of(str(tenant))) is not None:
                return name
        return self._take_first(self._heap)

    def evict_of(self, tenant: str) -> str | None:
        """As ``evict``, among one tenant's entries."""
        return self._take_first(self._heaps.get(tenant, []))

    def _take_first(self, heap: Heap) -> str | None:
        found, first = self._first(heap), self._first(self._heap)
        if found is None or first is None:
            return None
        self._clock = first[0]
        self.remove(found[2])
        return found[2]

    def _first(self, heap: Heap) -> tuple[float, int, str] | None:
        while heap and not self._is_valid(heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _is_valid(self, offered: tuple[float, int, str]) -> bool:
        entry = self._entries.get(offered[2])
        return entry is not None and entry.turn == offered[1] and not entry.holds

    def _offer(self, name: str, entry: _Entry) -> None:
        """Put an entry where it is found when it is its turn; what was put there before counts no more."""
        heaps = (
            (self._heap, len(self._entries)),
            (
                self._heaps.setdefault(entry.tenant, []),
                self.numbers.amounts[entry.tenant],
            ),
        )
        for heap, number in heaps:
            heapq.heappush(heap, (entry.priority, entry.turn, name))
            if len(heap) > 4 * number + 64:
                heap[:] = {offered for offered in heap if self._is_valid(offered)}
                heapq.heapify(heap)
