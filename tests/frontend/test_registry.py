"""Schemas by name and version, and what the engine's store makes of them."""

import asyncio
import threading

import pytest

from tests.frontend.support import FrontEnd, StoreConnection, nothing_changes, schema
from vllm_promptcache.engine.accounting import stats
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.describe import details, summary
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.telling import UnitTelling

TRAVEL = schema("travel", sea="the sea " * 10, snow="the snow " * 10)


def test_a_document_registers_all_of_its_schemas() -> None:
    front_end = FrontEnd()
    assert front_end.register(f"<pml>{TRAVEL}{schema('food')}</pml>") == [True]
    assert list(front_end.registry.entries) == ["travel", "food"]
    assert len(front_end.connection.catalog._holders) == 4


def test_the_same_content_is_no_new_version() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    first = front_end.registry["travel"]
    assert front_end.register(TRAVEL.replace('"', "'")) == [False]
    assert front_end.registry["travel"] is first
    assert set(front_end.connection.catalog._holders.values()) == {1}


def test_another_content_is_a_new_version_and_the_old_one_is_withdrawn() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    old = front_end.registry["travel"]
    assert front_end.register(TRAVEL.replace("snow", "ice")) == [True]
    new = front_end.registry["travel"]
    assert new is not old and new.is_defined and not old.is_defined
    # What both versions have in common is known once more, the rest of the old one no longer.
    assert set(front_end.connection.catalog._holders) == {digest for digest, _ in new.placements}
    assert front_end.registry.layouts == {"travel": new.layout}


def test_a_wrong_document_registers_nothing() -> None:
    front_end = FrontEnd()
    with nothing_changes(front_end), pytest.raises(PMLError) as caught:
        front_end.register(f"<pml>{TRAVEL}<schema name='a'><module/></schema><schema/></pml>")
    assert len(caught.value.issues) == 2


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ("<prompt schema='travel'/>", "a prompt cannot be registered"),
        ("<pml/>", "no schema"),
        (schema("long", m="x" * 2000), "2004 positions"),
        ("<schema name='s'><module name='m' src='/etc/passwd'/></schema>", "only in schemas"),
    ],
)
def test_what_cannot_be_registered(document: str, what: str) -> None:
    front_end = FrontEnd()
    with nothing_changes(front_end), pytest.raises(PMLError, match=what):
        front_end.register(document)


def test_a_pinned_schema_is_encoded_at_once() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL, pin=True)
    entry = front_end.registry["travel"]
    assert entry.is_pinned
    assert front_end.residencies("travel") == ["resident"] * 3
    assert front_end.connection.store.pins.num_blocks == 80 // 16 + 90 // 16


def test_pinning_beyond_the_limit_registers_nothing() -> None:
    front_end = FrontEnd(StoreConnection(pin_limit=9))
    with nothing_changes(front_end), pytest.raises(RefusedError, match="pin_fraction") as caught:
        front_end.register(TRAVEL, pin=True)
    assert caught.value.status == 507


def test_a_pinned_version_takes_the_place_of_the_old_one() -> None:
    front_end = FrontEnd(StoreConnection(pin_limit=10))
    front_end.register(TRAVEL, pin=True)
    front_end.register(TRAVEL.replace("snow", "rain"), pin=True)
    assert front_end.registry["travel"].is_pinned
    assert front_end.connection.store.pins.num_blocks == 10
    with nothing_changes(front_end), pytest.raises(RefusedError):
        front_end.register(TRAVEL.replace("the snow", "the snow and the ice"), pin=True)


def test_an_unpinned_version_of_a_pinned_schema_holds_no_pins() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL, pin=True)
    front_end.register(TRAVEL.replace("snow", "rain"))
    assert front_end.connection.store.pins.num_blocks == 0


def test_units_that_two_schemas_share_stay_pinned_for_the_other() -> None:
    # Their names differ in nothing that is encoded.
    first, second = TRAVEL, TRAVEL.replace('schema name="travel"', 'schema name="journey"')
    front_end = FrontEnd()
    front_end.register(first, second, pin=True)
    run_sync(front_end.registry.remove("travel"))
    assert front_end.connection.store.pins.num_blocks == 10
    run_sync(front_end.registry.unpin("journey"))
    assert front_end.connection.store.pins.num_blocks == 0


@pytest.mark.parametrize("fits", [True, False])
def test_a_pinned_version_leaves_what_another_schema_holds_pinned(fits: bool) -> None:
    front_end = FrontEnd(StoreConnection(pin_limit=16))
    front_end.register(TRAVEL, TRAVEL.replace('schema name="travel"', 'schema name="journey"'), pin=True)
    newer = TRAVEL.replace("snow", "rain") if fits else TRAVEL.replace("the snow", "the snow and the ice")
    if fits:
        front_end.register(newer, pin=True)
        assert front_end.connection.store.pins.num_blocks == 15
    else:
        with nothing_changes(front_end), pytest.raises(RefusedError):
            front_end.register(newer, pin=True)
    pinned = front_end.registry["journey"]
    described = details(pinned, run_sync(front_end.registry.status(pinned)))
    assert {module["pinned"] for module in described["modules"]} == {True}


def test_removing_a_schema_frees_its_blocks() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL, pin=True)
    entry = front_end.registry["travel"]
    run_sync(front_end.registry.remove("travel"))
    assert not front_end.registry.entries and not front_end.registry.layouts and not entry.is_defined
    assert not front_end.connection.store.known.by_key and not front_end.connection.catalog._holders
    assert front_end.connection.pool.get_num_free_blocks() == 200
    with pytest.raises(RefusedError) as caught:
        run_sync(front_end.registry.remove("travel"))
    assert caught.value.status == 404


def test_single_modules_are_pinned_unpinned_and_warmed() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    registry = front_end.registry
    run_sync(registry.pin("travel", ["sea"]))
    assert front_end.residencies("travel") == ["resident", "resident", "absent"]  # with its context
    assert len(registry["travel"].pinned) == 1 and not registry["travel"].is_pinned
    run_sync(registry.warm("travel", ["travel/snow"]))
    assert front_end.residencies("travel") == ["resident"] * 3
    run_sync(registry.unpin("travel"))
    assert front_end.connection.store.pins.num_blocks == 0


@pytest.mark.parametrize(
    ("module", "status", "what"), [("see", 404, "did you mean 'sea'"), ("raw", 400, "no cached text")]
)
def test_modules_that_cannot_be_pinned(module: str, status: int, what: str) -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL.replace("</schema>", "<module name='raw' cache='false'>raw</module></schema>"))
    with nothing_changes(front_end), pytest.raises(RefusedError, match=what) as caught:
        run_sync(front_end.registry.pin("travel", ["sea", module]))
    assert caught.value.status == status


def test_too_many_schemas_are_a_conflict() -> None:
    front_end = FrontEnd(max_schemas=2)
    front_end.register(schema("a"), schema("b"), schema("b", m="new version"))
    with nothing_changes(front_end), pytest.raises(RefusedError, match="max_schemas is 2") as caught:
        front_end.register(schema("c"))
    assert caught.value.status == 409


def test_the_description_tells_spans_tokens_and_residency() -> None:
    front_end = FrontEnd()
    front_end.register(
        '<schema name="s">abc<module name="m">de<parameter name="p" length="4" required="true"/></module>'
        '<union><module name="x">xyz</module><module name="y">y</module></union>'
        '<module name="none"/><scaffold modules="m x"/></schema>'
    )
    registry = front_end.registry
    run_sync(registry.warm("s", ["x"]))
    entry = registry["s"]
    described = details(entry, run_sync(registry.status(entry)))
    assert summary(entry).items() <= described.items()
    assert (described["tokens"], described["positions"], described["num_modules"]) == (9, 12, 4)
    modules = {module.pop("path"): module for module in described["modules"]}
    absent = {"residency": "absent", "pinned": False, "blocks": 0, "users": 0}
    resident = absent | {"residency": "resident"}
    assert modules == {
        "s": {"span": [0, 12], "tokens": 3, "cache": True} | resident,
        "s/m": {"span": [3, 9], "tokens": 2, "cache": True}
        | absent
        | {"parameters": [{"name": "p", "span": [5, 9], "required": True}]},
        "s/x": {"span": [9, 12], "tokens": 3, "cache": True, "union": "#0"} | resident,
        "s/y": {"span": [9, 10], "tokens": 1, "cache": True, "union": "#0"} | absent,
        "s/none": {"span": [12, 12], "tokens": 0, "cache": True, "residency": None},
    }
    assert described["scaffolds"] == [{"id": "s:m+x", "tokens": 5} | absent]


def test_changes_wait_for_each_other() -> None:
    """Two registrations at once, over a connection that suspends at every call."""

    class SlowConnection(StoreConnection):
        async def call(self, operation: str, payload: dict) -> dict:
            await asyncio.sleep(0)
            return await super().call(operation, payload)

    front_end = FrontEnd()
    connection = SlowConnection()
    front_end.registry.connection = connection
    front_end.registry.telling = UnitTelling(connection, shares_operators=True)

    async def register_all() -> None:
        versions = [TRAVEL, TRAVEL.replace("snow", "rain"), TRAVEL.replace("sea", "lake")]
        await asyncio.gather(*(front_end.registry.register(v, pin=True) for v in versions))

    asyncio.run(register_all())
    assert set(connection.catalog._holders) == {
        digest for digest, _ in front_end.registry["travel"].placements
    }
    assert set(connection.catalog._holders.values()) == {1}
    assert connection.store.pins.num_blocks == stats(connection.store)["blocks_modules"]


def test_a_coroutine_that_waits_is_no_script() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="event loop"):
        run_sync(waits())
    assert threading.active_count() >= 1


def test_heads_for_link_tokens_are_pinned_with_their_units_and_take_no_block() -> None:
    plain, linked = FrontEnd(), FrontEnd(StoreConnection(link_tokens=5), repair="link:5")
    for front_end in (plain, linked):
        front_end.register(TRAVEL, pin=True)
    stores = [front_end.connection.store for front_end in (plain, linked)]
    assert stores[0].pins.num_blocks == stores[1].pins.num_blocks
    pinned = [stats(store)["units_pinned"] for store in stores]
    assert pinned[1] > pinned[0]
    assert linked.residencies("travel") == plain.residencies("travel")
    run_sync(linked.registry.unpin("travel"))
    assert stats(stores[1])["units_pinned"] == 0
    run_sync(linked.registry.warm("travel"))
    run_sync(linked.registry.remove("travel"))
    assert not len(stores[1].known)


def test_many_units_are_pinned_in_parts_between_which_others_have_their_turn() -> None:
    """All or none: what was pinned before there was no more room is let go, and what others pinned stays."""
    modules = "".join(f"<module name='m{i}'>{chr(97 + i % 26)}{i}</module>" for i in range(1200))
    schema = f"<schema name='many'><union>{modules}</union></schema>"
    front_end = FrontEnd(StoreConnection(num_blocks=2000))
    front_end.register(schema, pin=True)
    calls = front_end.connection.calls
    assert calls.count("pin") == 3
    run_sync(front_end.registry.unpin("many"))
    assert calls.count("unpin") == 3
    assert front_end.connection.store.pins.num_units == 0
    small = FrontEnd(StoreConnection(num_blocks=300))
    small.register("<schema name='one'><module name='m'>a0</module></schema>", pin=True)
    with pytest.raises(RefusedError, match="pin_fraction"):
        small.register(schema, pin=True)
    assert small.connection.store.pins.num_units == 1
    assert list(small.registry.entries) == ["one"]
