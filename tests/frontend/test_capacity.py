"""How much room a prompt needs, where units stand elsewhere than at home."""

import numpy as np

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.frontend.capacity import Capacity


def unit(name: str, first: int, num_tokens: int, *context: Unit) -> Unit:
    positions = np.arange(first, first + num_tokens)
    return Unit(name, np.arange(num_tokens), positions, np.ones(num_tokens, bool), context)


ROOT = unit("root", 0, 64)
MEMBERS = [unit(f"m{number}", 64, 32, ROOT) for number in range(4)]
PLAN = Plan(
    "s",
    "d",
    (ROOT, *MEMBERS),
    (
        CachedSegment(ROOT, 0, 64),
        *(CachedSegment(member, 0, 32, 64 + 32 * place) for place, member in enumerate(MEMBERS)),
        NewSegment([1], 192, "new"),
    ),
)


def test_contexts_of_moved_units_are_counted_where_they_are_encoded() -> None:
    """At home once, where states can be moved; else wherever a unit stands: 3 times 4 more blocks of 16."""
    assert Capacity(16, 100, moves_modules=True).max_new_tokens(None, PLAN, ()) == (100 - 12) * 16 - 1
    assert Capacity(16, 100).max_new_tokens(None, PLAN, ()) == (100 - 24) * 16 - 1
    assert Capacity(16, 20, moves_modules=True).max_new_tokens(None, PLAN, ()) > 0
    assert Capacity(16, 20).max_new_tokens(None, PLAN, ()) == 0


def test_a_context_that_only_moved_units_have_seen_is_counted() -> None:
    member = MEMBERS[0]
    plan = Plan("s", "d", (ROOT, member), (CachedSegment(member, 0, 32, 500), NewSegment([1], 532, "new")))
    assert Capacity(16, 100, moves_modules=True).max_new_tokens(None, plan, ()) == (100 - 6) * 16 - 1
