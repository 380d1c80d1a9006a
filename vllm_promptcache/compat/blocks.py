"""The block pool: which blocks it gives next, and a moment before it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def before_new_blocks(pool: Any, look: Callable[[int], None]) -> None:
    """Have ``look`` called with the number of blocks that a pool is about to give.

    Target: BlockPool.get_new_blocks, of one pool. Why: blocks are given in many places, and only the pool
    knows which of them hold a cached prefix. Unnecessary once a pool's class can be named.
    """
    give = pool.get_new_blocks

    def get_new_blocks(num_blocks: int) -> Any:
        look(num_blocks)
        return give(num_blocks)

    pool.get_new_blocks = get_new_blocks


def next_blocks(pool: Any, num_blocks: int) -> Iterator[Any]:
    """The blocks that a pool gives next, at most so many. Nothing may change meanwhile.

    Target: FreeKVCacheBlockQueue.fake_free_list_head. Why: the queue has no way to look at its first blocks
    alone. Unnecessary with a pool of a class that is named.
    """
    queue = pool.free_block_queue
    block = queue.fake_free_list_head.next_free_block
    for _ in range(min(num_blocks, queue.num_free_blocks)):
        yield block
        block = block.next_free_block
