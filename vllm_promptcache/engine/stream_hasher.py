"""Block hashes of composed requests' private blocks, so that a later turn finds an earlier one's."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from vllm.v1.core.kv_cache_utils import BlockHash, hash_block_tokens
from vllm.v1.request import Request

from vllm_promptcache.blocks.composition import Composition, Computed
from vllm_promptcache.blocks.seats import Seats


class StreamHasher:
    """Hashes the full blocks of a request's stream, in stream order.

    The chain is seeded by everything the stream's states rest on besides its new tokens: units and
    ranges reused, positions, and the variant (adapter and tenant) that all of its units have. The length
    of the last run is left out, so a longer conversation over the same modules continues the same chain.
    A seed is an extra key, so these hashes never equal a plain request's. Stands in for
    ``Request._block_hasher``.
    """

    def __init__(
        self,
        hash_function: Callable[[Any], bytes],
        composition: Composition,
        seats: Seats,
        variant: Hashable,
    ):
        *items, last = composition.items
        assert isinstance(last, Computed)
        described = tuple(
            (i.first_position, i.num_tokens) if isinstance(i, Computed) else (i.unit[0], i.start, i.end)  # type: ignore[index]  # a digest and a variant
            for i in items
        )
        self._seed = ("prompt_cache", repr(variant), described, last.first_position)
        self._hash_function = hash_function
        self._seats = seats

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that became full since the last call; shared blocks have none (``b""``)."""
        seats, hashes = self._seats, request.block_hashes
        shared, size = seats.num_shared_blocks, seats.block_size
        new: list[BlockHash] = [BlockHash(b"")] * max(shared - len(hashes), 0)
        start = len(hashes) + len(new) - shared
        end = request.num_tokens // size - shared
        if start >= end:
            return new
        parent = hashes[-1] if start else None
        for block in range(start, end):
            low, high = self._new_tokens_before(block * size), self._new_tokens_before((block + 1) * size)
            first = seats.num_cached_tokens
            tokens = request.all_token_ids[first + low : first + high]
            parent = hash_block_tokens(self._hash_function, parent, tokens, None if block else self._seed)
            new.append(parent)
        return new

    def _new_tokens_before(self, offset: int) -> int:
        return new_tokens_before(self._seats, offset)


def new_tokens_before(seats: Seats, offset: int) -> int:
    """How many new tokens stand before a stream offset; generated ones follow the prompt's."""
    last = int(seats.offsets[-1])
    if offset > last:
        return len(seats.offsets) + offset - last - 1
    return int(seats.offsets.searchsorted(offset))
