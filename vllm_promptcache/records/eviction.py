"""Which record goes first: what is asked for least, weighted by what it would cost to have again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

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
    holds: int = 0


class GreedyDual:
    """Greedy-Dual-Size-Frequency (Cherkasova 1998): what is cheap, large, or seldom used goes first.

    An entry's priority is the clock when it was last used, plus its uses times its cost for a byte. The clock
    goes on to the priority of what is evicted, so what is not used any more ages. Entries that are as often
    used and as expensive go in the order of their last use. A call takes logarithmic time.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._clock = 0.0
        self._turn = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def add(self, name: str, num_bytes: int, cost: float, uses: int = 1) -> None:
        """A new entry. No change if it is there."""
        if name in self._entries:
            return
        self._entries[name] = _Entry(num_bytes, cost, uses - 1, 0.0, 0)
        self.num_bytes += num_bytes
        self.use(name)

    def use(self, name: str) -> None:
        """An entry was used."""
        entry = self._entries[name]
        entry.uses += 1
        self._turn += 1
        entry.turn = self._turn
        entry.priority = self._clock + entry.uses * entry.cost / max(entry.num_bytes, 1)
        heapq.heappush(self._heap, (entry.priority, entry.turn, name))
        if len(self._heap) > 4 * len(self._entries) + 64:
            self._heap = [(e.priority, e.turn, n) for n, e in self._entries.items() if not e.holds]
            heapq.heapify(self._heap)

    def remove(self, name: str) -> None:
        """An entry is gone. No change if it was not there."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.num_bytes -= entry.num_bytes

    def hold(self, name: str) -> None:
        """Keep an entry until it is let go as often."""
        self._entries[name].holds += 1

    def let_go(self, name: str) -> None:
        """See ``hold``."""
        entry = self._entries[name]
        entry.holds -= 1
        assert entry.holds >= 0
        if not entry.holds:
            heapq.heappush(self._heap, (entry.priority, entry.turn, name))

    def evict(self) -> str | None:
        """Remove the entry that goes first and is not held, and say which; None if there is none."""
        while self._heap:
            priority, turn, name = heapq.heappop(self._heap)
            entry = self._entries.get(name)
            if entry is None or entry.turn != turn or entry.holds:
                continue
            self._clock = priority
            self.remove(name)
            return name
        return None
