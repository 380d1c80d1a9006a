"""Block hashes of composed requests' private blocks, so that a later turn finds an earlier one's."""

from __future__ import annotations

from array import array
from hashlib import blake2b

from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from vllm_promptcache.blocks.seats import Seats

HASH_SIZE = 32


class StreamHasher:
    """Hashes the full blocks of a request's stream, in stream order.

    The chain's ``seed`` is everything the stream's states rest on besides its new tokens: units and
    ranges reused, positions, and the variant (adapter and tenant) that all of its units have. Without the
    length of the last run, so that a longer conversation over the same modules continues the same chain.
    The hashes are cryptographic whatever the prefix cache's are, and never equal a plain request's.
    Stands in for ``Request._block_hasher``.
    """

    def __init__(self, seats: Seats, seed: bytes):
        self._seats = seats
        self._seed = seed
        self._first_new_offset = int(seats.offsets[0])

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that became full since the last call; shared blocks have none (``b""``)."""
        seats, hashes = self._seats, request.block_hashes
        shared, size = seats.num_shared_blocks, seats.block_size
        new: list[BlockHash] = [BlockHash(b"")] * max(shared - len(hashes), 0)
        start = len(hashes) + len(new) - shared
        end = request.num_tokens // size - shared
        parent = hashes[-1] if start > 0 else self._seed
        for block in range(start, end):
            text = parent + self._new_tokens_in(block, request)
            parent = BlockHash(blake2b(text, digest_size=HASH_SIZE).digest())
            new.append(parent)
        return new

    def _new_tokens_in(self, block: int, request: Request) -> bytes:
        seats = self._seats
        if (block + 1) * seats.block_size <= self._first_new_offset:
            return b""  # edge rows only: the seed says which
        low, high = (new_tokens_before(seats, (block + i) * seats.block_size) for i in (0, 1))
        first = seats.num_cached_tokens
        return array("q", request.all_token_ids[first + low : first + high]).tobytes()


def new_tokens_before(seats: Seats, offset: int) -> int:
    """How many new tokens stand before a stream offset; generated ones follow the prompt's."""
    if offset <= seats.offsets[0]:
        return 0
    last = int(seats.offsets[-1])
    if offset > last:
        return len(seats.offsets) + offset - last - 1
    return int(seats.offsets.searchsorted(offset))
