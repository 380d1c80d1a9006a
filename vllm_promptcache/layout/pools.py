"""Pools: room at which any of many modules may stand, in the order of each prompt.

A member is laid out at the pool's first position, its *home*, where it sees what stands before the pool; in a
prompt it is moved to where its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import IssueList, quote
from vllm_promptcache.layout.draft import ModuleDraft, draft_text
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ModuleLayout, PoolLayout
from vllm_promptcache.layout.units import lay_out_module, make_unit
from vllm_promptcache.pml.nodes import ModuleNode, PoolNode


def make_pool(
    draft: ModuleDraft,
    context: tuple[Unit, ...],
    issues: IssueList,
    count: Callable[[Unit], None],
    max_model_len: int,
) -> PoolLayout:
    """The pool of a draft, whose members see `context`; `count` is told of each unit."""
    assert isinstance(draft.node, PoolNode)
    length = draft.node.length
    # Behind any member there is at least one new token.
    max_positions = max_model_len - 1 - draft.start if length is None else length
    pool = PoolLayout(draft.path, draft.start, length, max_positions, context, {}, draft.node)
    for member in draft.members:
        layout = _make_member(pool, member)
        if layout.unit is not None:
            count(layout.unit)
        if problem := too_long(pool, layout):
            issues.add(member.node.place.issue(problem))
        assert isinstance(pool.members, dict)
        pool.members[layout.name] = layout
    return pool


def lay_out_member(pool: PoolLayout, node: ModuleNode, encoder: TextEncoder) -> ModuleLayout:
    """A module of text only as a member of a pool; not added to it."""
    children = pool.node.with_separators(node.children)
    return _make_member(pool, draft_text(node, children, f"{pool.path}/{node.name}", pool.start, encoder))


def too_long(pool: PoolLayout, member: ModuleLayout) -> str | None:
    """What is wrong with a member that does not even fit its pool alone, or None."""
    num_positions = member.end - member.start
    if num_positions <= pool.max_positions:
        return None
    whose = "the pool" if pool.num_positions is not None else "the model, from the pool"
    return (
        f"{quote(member.name)} takes {num_positions} positions; {whose} {quote(pool.name)}"
        f" {'has' if pool.num_positions is not None else 'on, has'} {pool.max_positions}"
    )


def units_of(members: Iterable[ModuleLayout]) -> list[Unit]:
    """The units of members that have one."""
    return [member.unit for member in members if member.unit is not None]


def _make_member(pool: PoolLayout, draft: ModuleDraft) -> ModuleLayout:
    unit = make_unit(draft.path, draft.runs, pool.context) if draft.cache else None
    return lay_out_module(draft, unit)
