"""What the scheduler keeps for a request that is composed, and for one that encodes a unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from vllm_promptcache.blocks.composition import Composition, Reused
from vllm_promptcache.blocks.heads import whole_units
from vllm_promptcache.blocks.slot_layout import SlotLayout
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.private_hasher import new_tokens_before

if TYPE_CHECKING:
    from vllm_promptcache.engine.encoding import Encoding


@dataclass(eq=False)
class ComposedRequest:
    """A request whose cached tokens come from units.

    ``missing`` are the units that it still waits for, ``encoded`` and ``loaded`` those that began to be
    encoded, or loaded from records, because it asked for them. ``admitted`` is true while the request
    holds its shared blocks. ``found`` holds the private blocks that the prefix cache had at the last
    look. ``repaired_ranges`` are the half-open ranges of new tokens that units hold and that a repair
    has computed anew. ``no_room`` says that everything is computed, as its units could never be
    resident together. ``num_plain_blocks`` at the beginning of its table are hashed as a plain
    request's. ``num_pinned`` and ``num_pins_refused`` count the units that it asked to have pinned.
    ``reported`` is true once the front end knows what was reused.

    ``is_encoding`` says that it is one of the scheduler's own; ``encoding`` is what it encodes, until its
    last step is scheduled, and ``requester_id`` the request that it was queued for.
    """

    request: Request
    composition: Composition
    slot_layout: SlotLayout
    is_encoding: bool = False
    encoding: Encoding | None = None
    requester_id: str | None = None
    admitted: bool = False
    missing: dict[UnitKey, None] = field(default_factory=dict)
    encoded: set[UnitKey] = field(default_factory=set)
    loaded: set[UnitKey] = field(default_factory=set)
    found: list[KVCacheBlock] = field(default_factory=list)
    repaired_ranges: tuple[tuple[int, int], ...] = ()
    no_room: bool = False
    num_plain_blocks: int = 0
    num_pinned: int = 0
    num_pins_refused: int = 0
    reported: bool = False

    @property
    def report(self) -> dict[str, int]:
        """What was reused, for the front end: units are called modules there.

        A prompt's tokens are *reused*, of modules that were resident, that another request had begun to
        encode, or that were loaded from records; *encoded*, of modules that this one had encoded; *found* in
        the prefix cache; or *new*.
        Repaired tokens are counted among the new ones; not those that are found. ``no_room`` is there where
        modules were not reused because the KV cache is too small for them.
        """
        units = whole_units(self.composition.unit_keys)
        num_encoded_units = len(units & whole_units(self.encoded))
        num_loaded_units = len((units & self.loaded) - self.encoded)
        num_encoded = self.num_encoded_tokens
        num_found = self.num_found_tokens - self.slot_layout.num_cached_tokens
        return {
            "modules_resident": len(units) - num_encoded_units - num_loaded_units,
            "modules_encoded": num_encoded_units,
            "modules_loaded": num_loaded_units,
            "tokens_reused": self.slot_layout.num_cached_tokens - num_encoded,
            "tokens_encoded": num_encoded,
            "tokens_found": num_found,
            "tokens_new": self.slot_layout.num_prompt_tokens - self.num_found_tokens,
            "tokens_repaired": sum(
                max(end - max(start, num_found), 0) for start, end in self.repaired_ranges
            ),
            **({"no_room": 1} if self.no_room else {}),
            **({"modules_pinned": self.num_pinned} if self.num_pinned else {}),
            **({"pins_refused": self.num_pins_refused} if self.num_pins_refused else {}),
        }

    @property
    def num_encoded_tokens(self) -> int:
        """Tokens of modules that were encoded because this request asked for them."""
        items = self.composition.items
        return sum(i.end - i.start for i in items if isinstance(i, Reused) and i.unit in self.encoded)

    @property
    def num_found_tokens(self) -> int:
        """Tokens that need no computing when the found blocks enter the table."""
        offset = len(self.found) * self.slot_layout.block_size
        return self.slot_layout.num_cached_tokens + new_tokens_before(self.slot_layout, offset)

    def is_filled(self, num_computed_tokens: int) -> bool:
        """Whether a count of computed tokens says which slots are filled: not while runs in the middle
        of the private tokens are still to be computed, as edge rows behind them are counted before them."""
        middle = int(self.slot_layout.row_starts[-1])
        return num_computed_tokens >= self.slot_layout.num_cached_tokens + middle
