"""A pool's members in a prompt: in its order, right behind each other, from the pool's first position on."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.parts import Piece, PoolLayout
from vllm_promptcache.layout.pools import lay_out_member
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.units import move_piece, new_piece
from vllm_promptcache.plan.arguments import argument
from vllm_promptcache.plan.resolve import Included
from vllm_promptcache.pml.nodes import ModuleNode, TextNode


def place_members(included: Included, layout: SchemaLayout, issues: IssueList) -> Iterator[Piece]:
    """The pieces of all that a prompt puts into a pool; sets where the pool ends in this prompt.

    Adds an issue where it is longer than the pool.
    """
    pool = included.module.pool
    assert pool is not None, "only a pool has members"
    position = pool.start
    for item in included.items:
        if isinstance(item, TextNode):
            if token_ids := layout.encoder.encode(item.text):
                yield new_piece(token_ids, position, item.place.label("prompt"))
                position += len(token_ids)
            continue
        member = _member(item, pool, layout)
        moved = position - pool.start
        for parameter in member.module.parameters.values():
            piece = argument(member, parameter, layout, issues)
            if piece is not None:
                yield move_piece(piece, moved)
        for piece in member.module.pieces:
            yield move_piece(piece, moved)
        position += member.module.end - member.module.start
    included.end = position
    _refuse_too_long(included, pool, position - pool.start, issues)


def _member(item: Included | ModuleNode, pool: PoolLayout, layout: SchemaLayout) -> Included:
    """The member, laid out now if it came with the prompt."""
    if isinstance(item, Included):
        return item
    module = lay_out_member(pool, item, layout.encoder)
    return Included(module, item, None)


def _refuse_too_long(included: Included, pool: PoolLayout, num_positions: int, issues: IssueList) -> None:
    if pool.num_positions is not None and num_positions > pool.num_positions:
        what = f"what stands in the pool takes {num_positions} positions; {pool.num_positions} fit"
        issues.add(included.node.place.issue(what))
