"""Block hashes of composed requests' private blocks, so that a later request finds an earlier one's."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from vllm.v1.core.kv_cache_utils import BlockHash
from vllm.v1.request import Request

from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.slot_layout import SlotLayout

HASH_SIZE = 32

# A block's hash in vLLM's own chain: ``(request, parent, token IDs, first index)``.
PlainHash = Callable[[Request, BlockHash | None, Sequence[int], int], BlockHash]


class PrivateHasher:
    """Hashes a request's full private blocks, in order.

    A block's hash names all that its states rest on, and nothing else: what the prompt reuses and computes up
    to the block's last token, in position order, the adapter and the tenant. So prompts that begin alike find
    each other's blocks as far as they do, and a longer conversation over the same modules continues the
    chain. The hashes are cryptographic whatever the prefix cache's are, and never equal a plain request's,
    but for new text at the very start of a prompt, without an adapter: its blocks *are* a plain request's.
    Stands in for ``Request._block_hasher``.
    """

    def __init__(
        self,
        composition: Composition,
        slot_layout: SlotLayout,
        adapter: Any,
        tenant: Any,
        plain_hash: PlainHash,
    ):
        self._slot_layout = slot_layout
        self._seed = repr((adapter, tenant)).encode()
        self._plain_hash = plain_hash
        self._events = [
            (offset, _described(item, offset))
            for item, offset in zip(composition.items, slot_layout.item_offsets, strict=True)
        ]
        self._next_event = 0
        first = composition.items[0]
        # vLLM's own hashes do not know which weights an adapter had by that name.
        is_plain = isinstance(first, Computed) and first.first_position == 0 and adapter is None
        self._num_plain = first.num_tokens if isinstance(first, Computed) and is_plain else 0
        # A prompt of nothing else is plain throughout, and what is generated behind it.
        self._is_all_plain = is_plain and len(composition.items) == 1

    @property
    def num_plain_blocks(self) -> int:
        """How many private blocks at the beginning are a plain request's."""
        size = self._slot_layout.block_size
        return sys.maxsize if self._is_all_plain else self._num_plain // size

    def __call__(self, request: Request) -> list[BlockHash]:
        """Hashes of the blocks that became full since the last call; shared blocks have none (``b""``)."""
        slot_layout, hashes = self._slot_layout, request.block_hashes
        shared, size = slot_layout.num_shared_blocks, slot_layout.block_size
        if not hashes:
            self._next_event = 0
        new: list[BlockHash] = [BlockHash(b"")] * max(shared - len(hashes), 0)
        start = len(hashes) + len(new) - shared
        end = request.num_tokens // size - shared
        parent = hashes[-1] if start > 0 else None
        for block in range(start, end):
            token_ids = self._new_tokens_in(block, request)
            if self._is_all_plain or (block + 1) * size <= self._num_plain:
                parent = self._plain_hash(request, parent, token_ids, block * size)
            else:
                text = (parent or b"") + self._seed + self._events_before((block + 1) * size)
                text += array("q", token_ids).tobytes()
                parent = BlockHash(blake2b(text, digest_size=HASH_SIZE).digest())
            new.append(parent)
        return new

    def _events_before(self, offset: int) -> bytes:
        """What begins before an offset and was in no block before."""
        parts: list[bytes] = []
        while self._next_event < len(self._events) and self._events[self._next_event][0] < offset:
            parts.append(self._events[self._next_event][1])
            self._next_event += 1
        return b"".join(parts)

    def _new_tokens_in(self, block: int, request: Request) -> Sequence[int]:
        slot_layout = self._slot_layout
        low, high = (new_tokens_before(slot_layout, (block + i) * slot_layout.block_size) for i in (0, 1))
        first = slot_layout.num_cached_tokens
        return request.all_token_ids[first + low : first + high]


def _described(item: Reused | Computed, offset: int) -> bytes:
    if isinstance(item, Computed):
        return f"new {offset} {item.first_position};".encode()
    key = item.unit
    return f"{key.digest} {key.position} {key.part} {offset} {item.start} {item.end};".encode()


def new_tokens_before(slot_layout: SlotLayout, offset: int) -> int:
    """How many new tokens stand before an offset; generated ones follow the prompt's."""
    if offset <= slot_layout.offsets[0]:
        return 0
    last = int(slot_layout.offsets[-1])
    if offset > last:
        return len(slot_layout.offsets) + offset - last - 1
    return int(slot_layout.offsets.searchsorted(offset))
