"""What the scheduler keeps for a request that is composed, and for one that encodes a unit."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from vllm_promptcache.blocks.composition import Composition
from vllm_promptcache.blocks.heads import whole_units
from vllm_promptcache.blocks.seats import Seats
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.stream_hasher import new_tokens_before


@dataclass(eq=False)
class ComposedRequest:
    """A request whose cached tokens come from units.

    ``is_encoding`` says that it is one of the scheduler's own; ``encodes`` is the unit whose states it
    computes, until its last step is scheduled, and ``asker_id`` the request that it was first queued for.
    ``seated`` is true while the request holds its shared blocks. ``num_encoded_units`` counts the units
    that were not resident when it arrived. ``num_history_tokens`` of its new tokens are earlier turns of
    the conversation, whose states may be found in the prefix cache; ``found`` holds the private blocks
    that were, at the last look. ``repaired_ranges`` are the half-open ranges of new tokens that units
    hold and that a repair has computed anew. ``reported`` is true once the front end knows what was reused.
    """

    request: Request
    composition: Composition
    seats: Seats
    encodes: UnitKey | None = None
    is_encoding: bool = False
    asker_id: str | None = None
    seated: bool = False
    num_encoded_units: int = 0
    num_history_tokens: int = 0
    found: list[KVCacheBlock] = field(default_factory=list)
    repaired_ranges: tuple[tuple[int, int], ...] = ()
    reported: bool = False

    @property
    def report(self) -> dict[str, int]:
        """What was reused, for the front end: units are called modules there.

        Repaired tokens are counted among the new ones; not those that an earlier turn has left.
        """
        num_units = len(whole_units(self.composition.unit_keys))
        num_found = self.num_found_tokens - self.seats.num_cached_tokens
        return {
            "modules_resident": num_units - self.num_encoded_units,
            "modules_encoded": self.num_encoded_units,
            "tokens_reused": self.num_found_tokens,
            "tokens_new": self.seats.num_prompt_tokens - self.num_found_tokens,
            "tokens_repaired": sum(
                max(end - max(start, num_found), 0) for start, end in self.repaired_ranges
            ),
        }

    @property
    def num_found_tokens(self) -> int:
        """Tokens that need no computing when the found blocks enter the table."""
        offset = len(self.found) * self.seats.block_size
        return self.seats.num_cached_tokens + new_tokens_before(self.seats, offset)

    def is_filled(self, num_computed_tokens: int) -> bool:
        """Whether a count of computed tokens says which slots are filled: not while runs in the middle
        of the stream are still to be computed, as edge rows behind them are counted before them."""
        middle = int(self.seats.row_starts[-1])
        return num_computed_tokens >= self.seats.num_cached_tokens + middle
