"""Block hashes of composed requests' private blocks, so that a later turn finds an earlier one's."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from hashlib import blake2b
from typing import Any

from vllm.v1.core.kv_cache_utils import BlockHash, hash_block_tokens
from vllm.v1.request import Request

from vllm_promptcache.blocks.seats import Seats


class StreamHasher:
    """Hashes the full blocks of a request's stream, in stream order.

    The chain's ``seed`` is everything the stream's states rest on besides its new tokens: units and
    ranges reused, positions, and the variant (adapter and tenant) that all of its units have. Without the
    length of the last run, so that a longer conversation over the same modules continues the same chain.
    A chain that begins with a seed never equals a plain request's. Stands in for
    ``Request._block_hasher``.
    """

    def __init__(self, hash_function: Callable[[Any], bytes], seats: Seats, seed: Hashable):
        self._seed = ("prompt_cache", seed)
        self._hash_function = hash_function
        self._seats = seats
        self._first_new_offset = int(seats.offsets[0])

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that became full since the last call; shared blocks have none (``b""``)."""
        seats, hashes = self._seats, request.block_hashes
        shared, size = seats.num_shared_blocks, seats.block_size
        new: list[BlockHash] = [BlockHash(b"")] * max(shared - len(hashes), 0)
        start = len(hashes) + len(new) - shared
        end = request.num_tokens // size - shared
        if start >= end:
            return new
        parent = hashes[-1] if start else BlockHash(self._hash_function(self._seed))
        for block in range(start, end):
            if (block + 1) * size <= self._first_new_offset:  # edge rows only: the seed says which
                parent = BlockHash(blake2b(parent, digest_size=32).digest())
            else:
                parent = hash_block_tokens(self._hash_function, parent, self._new_tokens_in(block, request))
            new.append(parent)
        return new

    def _new_tokens_in(self, block: int, request: Request) -> list[int]:
        seats = self._seats
        low, high = (new_tokens_before(seats, (block + i) * seats.block_size) for i in (0, 1))
        first = seats.num_cached_tokens
        return request.all_token_ids[first + low : first + high]


def new_tokens_before(seats: Seats, offset: int) -> int:
    """How many new tokens stand before a stream offset; generated ones follow the prompt's."""
    last = int(seats.offsets[-1])
    if offset > last:
        return len(seats.offsets) + offset - last - 1
    return int(seats.offsets.searchsorted(offset))
