"""The store's parts over vLLM's block pool, without an engine: what may go, in which order, at which cost."""

from typing import Any

import numpy as np
import pytest
from vllm.v1.core.block_pool import BlockPool

from vllm_promptcache.blocks.composition import Seen, UnitText
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine import resident_units
from vllm_promptcache.engine.accounting import check_integrity, stats
from vllm_promptcache.engine.eviction import LeastRecentlyUsed
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.records.shares import Shares

SIZE = 4


class Uncounted(dict[Any, Any]):
    """A mapping that may be asked for one thing at a time."""

    def _refuse(self, *args: Any) -> Any:
        raise AssertionError("a list of all that is known was made")

    __iter__ = keys = values = items = copy = _refuse


def make_store(num_blocks: int = 100) -> ModuleStore:
    pool = BlockPool(num_blocks + 1, enable_caching=True, hash_block_size=SIZE)
    return ModuleStore(pool, SIZE, num_blocks // 2, 100_000)


def text(num_tokens: int, *context: Seen) -> UnitText:
    tokens = np.arange(num_tokens)
    return UnitText(tokens, tokens, np.ones(num_tokens, bool), context)


def encode(store: ModuleStore, name: str, num_tokens: int = 6, *context: Seen) -> StoredUnit:
    """A unit that is resident, known for its states alone."""
    unit = store.known.hold(UnitKey(name, 0), {name: text(num_tokens, *context)})
    if not unit.has_states:
        store.resident.begin(unit)
        store.resident.allocate(unit)
        store.resident.finish(unit)
        store.resident.end_use((unit.key,))
    store.known.release(unit.key)
    return unit


def test_the_least_recently_used_goes_first() -> None:
    store = make_store()
    units = [encode(store, name) for name in "abcd"]
    store.resident.use((units[0].key,))
    assert [key.digest for key in store.resident.reclaim({units[2].key})] == ["b", "d"]
    store.resident.end_use((units[0].key,))
    assert [key.digest for key in store.resident.reclaim(set())] == ["c", "a"]
    check_integrity(store, [])
    assert (stats(store)["units_known"], stats(store)["evictions"]) == (0, 4)


def test_what_is_pinned_or_used_does_not_go() -> None:
    store = make_store()
    pinned, used, idle = (encode(store, name) for name in "pui")
    assert store.pins.pin([pinned.key])
    store.resident.use((used.key,))
    assert list(store.resident.reclaim(set())) == [idle.key]
    store.pins.unpin([pinned.key])
    assert list(store.resident.reclaim(set())) == [pinned.key]
    store.resident.end_use((used.key,))
    check_integrity(store, [])


def test_nothing_that_requests_do_lists_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound too, where each release has one unit go."""
    monkeypatch.setattr(resident_units, "MAX_KNOWN_UNITS", 40)
    store = make_store()
    for index in range(40):
        encode(store, f"{index}", 2)
    store.known.by_key = Uncounted({key: store.known[key] for key in store.known.by_key})
    for index in range(40, 60):
        unit = encode(store, f"{index}", 2 if index % 2 else 6)
        store.resident.use((unit.key,))
        store.resident.end_use((unit.key,))
        stats(store)
    assert len(store.known) == 40
    assert next(store.resident.reclaim(set())).digest == "40"


def test_rows_beside_the_cache_are_bounded_by_dropping_the_oldest() -> None:
    store = make_store(40)
    limit = store.resident.max_kept_rows
    for index in range(limit):
        encode(store, f"{index}", 3)
    assert store.resident.num_kept_rows <= limit
    assert UnitKey("0", 0) not in store.known and UnitKey(f"{limit - 1}", 0) in store.known
    check_integrity(store, [])


def test_orders_of_eviction_take_and_give_in_any_order() -> None:
    order = LeastRecentlyUsed(Shares())
    a, b = UnitKey("a", 0), UnitKey("b", 0)
    for key in (a, b, a):  # offered already: it keeps its place
        order.offered(key)
    assert list(order) == [a, b]
    order.taken(a)
    order.offered(a)
    assert list(order) == [b, a] and len(order) == 2
    order.evicted(b)
    order.taken(b)
    assert list(order) == [a]


def test_those_beyond_their_share_go_first() -> None:
    shares = Shares(5)
    order = LeastRecentlyUsed(shares)
    keys = [
        UnitKey(name, 0, None, tenant) for name, tenant in (("a", None), ("b", "x"), ("c", "y"), ("d", "x"))
    ]
    for key in keys:
        order.offered(key)
    assert list(order) == keys
    shares.add("x", 6)
    assert list(order) == [keys[1], keys[3], keys[0], keys[2]]
    assert list(order.of("y")) == [keys[2]] and not list(order.of("z"))
    shares.add("x", -1)
    assert list(order) == keys
    for key in keys:
        order.taken(key)
    assert not order._by_tenant


def test_contexts_are_known_as_long_as_who_has_seen_them() -> None:
    store = make_store()
    seen = Seen("root", -3)
    texts = {"root": text(3), "child": text(5, seen)}
    child = store.known.hold(UnitKey("child", 3), texts)
    assert child.context == (UnitKey("root", 0),)
    assert store.known[UnitKey("root", 0)].holders == 1
    store.known.release(child.key)
    assert not len(store.known)
    with pytest.raises(ValueError, match="cannot stand at position -1"):
        store.known.hold(UnitKey("child", 2), texts)
    assert not len(store.known)


def in_sequence(number: int) -> dict[str, UnitText]:
    """Texts of units of a token, each of which sees all before it."""
    texts = {"0": text(1)}
    for i in range(1, number):
        tokens = np.zeros(1, np.int64)
        seen = (Seen(f"{i - 1}", -1),)
        texts[f"{i}"] = UnitText(tokens, tokens, np.ones(1, bool), seen, home=i, has_stem=True)
    return texts


@pytest.mark.parametrize("is_movable", [False, True])
def test_what_a_stem_has_seen_is_seen(is_movable: bool) -> None:
    """However many there are, wherever they stand: each unit holds one, and all go with the last."""
    store = make_store()
    store.known.is_movable = lambda: is_movable
    number = 3000
    texts = in_sequence(number)
    for position in (number - 1, number + 6):
        first = 0 if is_movable else position - number + 1
        key = UnitKey(f"{number - 1}", position)
        unit = store.known.hold(key, texts)
        assert unit.context == tuple(UnitKey(f"{i}", first + i) for i in range(number - 1))
        assert unit.context_tokens == (number - 1, number - 1)
        assert len(unit.seen) == 1 and len(store.known) == number
        assert len(store.known.closure([unit])) == len(store.known)
        store.known.release(key)
        assert not len(store.known)


def test_a_stem_that_is_encoded_elsewhere_has_seen_others() -> None:
    """Whether states can be moved may be known only later."""
    store = make_store()
    texts = in_sequence(4)
    store.known.is_movable = lambda: True
    moved = store.known.hold(UnitKey("2", 12), texts)
    assert moved.context == (UnitKey("0", 0), UnitKey("1", 1))
    store.known.is_movable = lambda: False
    last = store.known.hold(UnitKey("3", 13), texts)
    assert last.context == last.seen == tuple(UnitKey(f"{i}", 10 + i) for i in range(3))
    store.known.release(moved.key)
    store.known.release(last.key)
    assert not len(store.known)


def test_nothing_is_held_of_units_whose_text_is_missing_or_impossible() -> None:
    store = make_store()
    texts = in_sequence(5)
    with pytest.raises(ValueError, match="cannot stand at position -1"):
        store.known.hold(UnitKey("4", 3), texts)
    assert not len(store.known)
    with pytest.raises(KeyError):
        store.known.hold(UnitKey("4", 4), {name: one for name, one in texts.items() if name != "0"})
    assert not len(store.known)
    texts["3"] = UnitText(
        *[getattr(texts["3"], n) for n in ("token_ids", "positions", "kept")],
        (*texts["3"].context, Seen("x", -1)),
        has_stem=True,
    )
    with pytest.raises(KeyError):
        store.known.hold(UnitKey("4", 4), texts)
    assert not len(store.known)
