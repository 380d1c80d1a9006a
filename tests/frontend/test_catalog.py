"""Two front ends of one server: what one registers, the other knows."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.byte_tokenizer import CHATML, byte_tokenizer
from tests.frontend.support import MAX_MODEL_LEN, StoreConnection, schema
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.frontend.catalog import Catalog
from vllm_promptcache.frontend.documents import LayoutBuilder
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.layout.encoder import TextEncoder

TRAVEL = schema("travel", sea="the sea " * 10, snow="the snow " * 10)


@pytest.fixture
def open_catalog(tmp_path: Path) -> Iterator[Callable[[str], Catalog]]:
    with ExitStack() as opened:
        yield lambda run: opened.enter_context(closing(Catalog(tmp_path / "catalog.sqlite3", run)))


@pytest.fixture
def registry(open_catalog: Callable[[str], Catalog]) -> Callable[..., SchemaRegistry]:
    def make(connection: StoreConnection, run: str = "run") -> SchemaRegistry:
        encoder = TextEncoder(byte_tokenizer(chat_template=CHATML))
        builder = LayoutBuilder(encoder, MAX_MODEL_LEN, PromptCacheConfig())
        return SchemaRegistry(connection, builder, 3, open_catalog(run))

    return make


def test_what_one_registers_the_other_knows(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        connection = StoreConnection()
        one, two = registry(connection), registry(connection)
        await one.register(TRAVEL, pin=True)
        await two.catch_up()
        assert two["travel"].layout.digest == one["travel"].layout.digest
        assert two["travel"].pinned == one["travel"].pinned and two["travel"].is_defined
        # The engine was told once.
        assert connection.calls.count("define") == 1
        assert (await two.register(TRAVEL)).is_new is False
        await two.remove("travel")
        await one.catch_up()
        assert not one.entries and not one.layouts
        with pytest.raises(RefusedError):
            await one.remove("travel")
        assert not connection.catalog._holders

    asyncio.run(go())


def test_versions_follow_each_other(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        connection = StoreConnection()
        one, two = registry(connection), registry(connection)
        await one.register(TRAVEL)
        await two.catch_up()
        old = two["travel"]
        await two.register(TRAVEL.replace("snow", "ice"), pin=True)
        await one.catch_up()
        assert one["travel"].layout.digest == two["travel"].layout.digest != old.layout.digest
        assert not old.is_defined
        await one.unpin("travel")
        await two.catch_up()
        assert not two["travel"].pinned

    asyncio.run(go())


def test_changes_at_once_are_one_after_the_other(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        connection = StoreConnection()
        fronts = [registry(connection) for _ in range(3)]
        changes = [front.register(schema(f"s{i}", m="x" * 20)) for i, front in enumerate(fronts)]
        await asyncio.gather(*changes)
        with pytest.raises(RefusedError, match="max_schemas"):
            await fronts[0].register(schema("s3", m="x"))
        for front in fronts:
            await front.catch_up()
            assert sorted(front.entries) == ["s0", "s1", "s2"]

    asyncio.run(go())


def test_nothing_is_read_where_nothing_has_changed(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        connection = StoreConnection()
        one, two = registry(connection), registry(connection)
        await one.register(TRAVEL)
        await two.catch_up()
        entry = two["travel"]
        two._catalog.entries = None  # type: ignore[method-assign, union-attr, assignment]
        await two.catch_up()
        assert two["travel"] is entry

    asyncio.run(go())


def test_engines_that_start_again_are_told_once(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        await registry(StoreConnection()).register(TRAVEL, pin=True)
        connection = StoreConnection()
        one, two = registry(connection, "next"), registry(connection, "next")
        await one.open()
        await two.open()
        assert connection.calls == ["define", "pin"]
        assert two["travel"].is_pinned

    asyncio.run(go())


def _hold_and_die(folder: Path, held: multiprocessing.synchronize.Event) -> None:
    async def go() -> None:
        async with Catalog(folder / "catalog.sqlite3", "run").changing():
            held.set()
            await asyncio.sleep(600)

    asyncio.run(go())


def test_a_front_end_that_dies_holds_up_nobody(
    registry: Callable[..., SchemaRegistry], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=_hold_and_die, args=(tmp_path, held))
    other.start()
    assert held.wait(300)

    async def go() -> None:
        change = asyncio.create_task(registry(StoreConnection()).register(TRAVEL))
        await asyncio.sleep(0.05)
        assert not change.done()
        other.kill()
        assert (await asyncio.wait_for(change, 300)).is_new

    asyncio.run(go())
    other.join()


def test_what_is_registered_outlives_the_server(registry: Callable[..., SchemaRegistry]) -> None:
    async def go() -> None:
        first = registry(StoreConnection(), "run 1")
        await first.register(TRAVEL, pin=True)
        await first.register(schema("operators", sea="the sea " * 10), source="operators.pml", pin=True)
        connection = StoreConnection()
        again = registry(connection, "run 2")
        await again.open()
        # What the operator starts a server with is not remembered: the next one says it itself.
        assert set(again.entries) == {"travel"}
        assert again["travel"].pinned == first["travel"].pinned
        assert connection.calls.count("pin") == 1
        await again.remove("travel")
        once_more = registry(StoreConnection(), "run 3")
        await once_more.open()
        assert not once_more.entries

    asyncio.run(go())


def test_what_does_not_fit_any_more_goes(
    registry: Callable[..., SchemaRegistry], open_catalog: Callable[[str], Catalog]
) -> None:
    async def go() -> None:
        await registry(StoreConnection(), "run 1").register(TRAVEL)
        catalog = open_catalog("by hand")
        said = catalog.entries("schema")["travel"]
        catalog.put("schema", {"garbage": {**said, "schema": {"node": "SchemaNode"}}})
        again = registry(StoreConnection(), "run 2")
        await again.open()
        assert set(again.entries) == {"travel"}
        assert set(catalog.entries("schema")) == {"travel"}

    asyncio.run(go())


@pytest.mark.parametrize("damage", [b"\x00\xff" * 5000, b"", b"SQLite format 3\x00" + b"\x07" * 400])
def test_a_damaged_catalog_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    catalog = Catalog.of_server(str(tmp_path))
    assert catalog is not None
    catalog.put("schema", {"x": 1})
    catalog.close()
    (tmp_path / "catalog.sqlite3").write_bytes(damage)
    again = Catalog.of_server(str(tmp_path))
    assert again is not None
    assert again.entries("schema") == {}
    again.put("schema", {"y": 1})
    again.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Catalog.of_server(str(tmp_path / "file")) is None
