"""The catalog against workers that do what it orders: what it says is there, is."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.records.test_record_file import HEADER, rows
from vllm_promptcache.records import catalog as catalog_module
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.index import RecordIndex
from vllm_promptcache.records.record_file import write_record

ROW = 10


def bytes_of(num_rows: int) -> int:
    return num_rows * ROW


@dataclass
class Worker:
    """What is in a worker's memory and on its disk; ``opened`` will be with the next step."""

    memory: set[str] = field(default_factory=set)
    disk: set[str] = field(default_factory=set)
    opened: set[str] = field(default_factory=set)

    def obey(self, catalog: RecordCatalog) -> None:
        orders = catalog.take_orders()
        self.memory -= set(orders.dropped)
        self.disk -= {header.name for header in orders.removed}
        self.memory |= self.opened
        self.opened = set()
        for header in orders.written:
            assert header.name in self.memory
            self.disk.add(header.name)


def keep(
    catalog: RecordCatalog,
    worker: Worker,
    name: str,
    num_rows: int = 10,
    cost: float = 1.0,
    tenant: str = "",
) -> bool:
    if not catalog.begin(name, num_rows, 0, cost, tenant=tenant):
        return False
    worker.opened.add(name)
    catalog.complete(name)
    worker.obey(catalog)
    return True


def test_the_least_recently_used_goes_from_memory() -> None:
    catalog, worker = RecordCatalog(300, 0, bytes_of), Worker()
    for name in "abc":
        assert keep(catalog, worker, name)
    catalog.use("a")
    assert keep(catalog, worker, "d")
    assert worker.memory == {"a", "c", "d"}
    assert catalog.header("b") is None
    assert not catalog.begin("e", 31, 0, 1.0)
    assert catalog.stats()["records_dropped"] == 1


def test_what_is_dear_to_encode_stays_longer() -> None:
    catalog, worker = RecordCatalog(200, 0, bytes_of), Worker()
    keep(catalog, worker, "dear", cost=50.0)
    for name in "abcdef":
        keep(catalog, worker, name)
    assert worker.memory == {"dear", "f"}


def test_pinned_ones_stay() -> None:
    catalog, worker = RecordCatalog(200, 0, bytes_of), Worker()
    catalog.pin("a")
    for name in "abcd":
        keep(catalog, worker, name)
    assert "a" in worker.memory
    keep(catalog, worker, "e")
    catalog.unpin("a")
    for name in "fgh":
        keep(catalog, worker, name)
    assert "a" not in worker.memory


def test_what_is_loaded_in_a_step_stays_until_then() -> None:
    catalog, worker = RecordCatalog(200, 0, bytes_of), Worker()
    keep(catalog, worker, "a")
    keep(catalog, worker, "b")
    catalog.load("a")
    catalog.load("b")
    assert not catalog.begin("c", 10, 0, 1.0)
    worker.obey(catalog)
    assert catalog.begin("c", 10, 0, 1.0)


def test_given_up_is_as_never_begun() -> None:
    catalog, worker = RecordCatalog(200, 0, bytes_of), Worker()
    assert catalog.begin("a", 10, 0, 1.0)
    assert catalog.is_moving("a")
    assert not catalog.is_in_memory("a")
    catalog.give_up("a")
    worker.obey(catalog)
    assert catalog.header("a") is None
    assert catalog.host.num_bytes == 0
    assert catalog.begin("a", 10, 0, 1.0)


def test_a_start_finds_what_was_there_and_makes_room_by_what_is_foreign(tmp_path: Path) -> None:
    for name, fingerprint in (("a" * 48, "f" * 32), ("b" * 48, "f" * 32), ("c" * 48, "e" * 32)):
        write_record(tmp_path, type(HEADER)(name, fingerprint, 0, 1, 7, 0, 9.0), rows())
    size = next(tmp_path.glob("*.safetensors")).stat().st_size
    index = RecordIndex(tmp_path)
    catalog = RecordCatalog(0, size * 2 + 10, bytes_of, "f" * 32, 1, index)
    assert catalog.is_on_disk("a" * 48)
    assert catalog.is_on_disk("b" * 48)
    assert catalog.header("c" * 48) is None
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert not catalog.take_orders().removed
    assert catalog.fetching("a" * 48)
    catalog.fetched("a" * 48, found=True)
    assert catalog.is_in_memory("a" * 48)
    assert catalog.fetching("b" * 48)
    catalog.fetched("b" * 48, found=False)
    assert catalog.header("b" * 48) is None
    assert "b" * 48 in {header.name for header in catalog.take_orders().removed}
    index.close()


def test_a_tenant_takes_no_others_place_beyond_its_share() -> None:
    """Half of 400 bytes: with all of its own pinned, or none of it there, nothing more of it is kept."""
    catalog, worker = RecordCatalog(400, 0, bytes_of, tenant_fraction=0.5), Worker()
    assert keep(catalog, worker, "quiet", tenant="quiet")
    for number in range(9):
        assert keep(catalog, worker, f"{number}", tenant="greedy")
        assert "quiet" in worker.memory
    assert catalog.stats_of("greedy")["bytes_in_memory"] == 300
    assert keep(catalog, worker, "third", tenant="third")
    assert {"quiet", "third"} <= worker.memory
    for name in worker.memory - {"quiet", "third"}:
        catalog.pin(name)
    assert not keep(catalog, worker, "more", tenant="greedy")
    assert {"quiet", "third"} <= worker.memory
    assert catalog.tenants == {"quiet", "greedy", "third"}


def test_a_start_knows_whose_records_are(tmp_path: Path) -> None:
    header = replace(HEADER, tenant="somebody")
    write_record(tmp_path, header, rows())
    index = RecordIndex(tmp_path)
    for _ in range(2):  # from the file, and from the index
        (record,) = index.records()
        assert record.header.tenant == "somebody"
        index.close()
        index = RecordIndex(tmp_path)
    catalog = RecordCatalog(0, 1 << 20, bytes_of, HEADER.fingerprint, 1, index)
    assert catalog.stats_of("somebody")["records_on_disk"] == 1
    index.close()


class CatalogMachine(RuleBasedStateMachine):
    """Any calls, against a worker's memory and disk."""

    def __init__(self) -> None:
        super().__init__()
        index: Any = FakeIndex()
        self.catalog = RecordCatalog(100, 250, bytes_of, "f", 1, index)
        self.worker = Worker()
        self.moving: dict[str, str] = {}
        self.pinned: set[str] = set()

    names = st.sampled_from([f"record {n}" for n in range(12)])

    @rule(name=names, num_rows=st.integers(1, 12), cost=st.floats(0.1, 100))
    def begin(self, name: str, num_rows: int, cost: float) -> None:
        known = self.catalog.header(name) is not None
        if self.catalog.begin(name, num_rows, 0, cost):
            assert not known
            self.worker.opened.add(name)
            self.moving[name] = "begun"

    @precondition(lambda self: self.moving)
    @rule(data=st.data(), ends_well=st.booleans())
    def end(self, data: Any, ends_well: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.moving)))
        if self.moving.pop(name) == "begun":
            if ends_well:
                self.catalog.complete(name)
            else:
                self.catalog.give_up(name)
                self.worker.opened.discard(name)
        else:
            if ends_well:
                self.worker.memory.add(name)
            self.catalog.fetched(name, found=ends_well)

    @rule(name=names)
    def fetch(self, name: str) -> None:
        if self.catalog.is_on_disk(name) and not self.catalog.is_in_memory(name):
            assert name in self.worker.disk
            if self.catalog.fetching(name):
                self.moving[name] = "fetching"

    @rule(name=names)
    def load(self, name: str) -> None:
        if self.catalog.is_in_memory(name):
            assert name in self.worker.memory
            self.catalog.load(name)

    @rule(name=names)
    def pin(self, name: str) -> None:
        self.catalog.pin(name)
        self.pinned.add(name)

    @rule(name=names)
    def unpin(self, name: str) -> None:
        self.catalog.unpin(name)
        self.pinned.discard(name)

    @rule(name=names)
    def discard(self, name: str) -> None:
        self.catalog.discard(name)

    @rule()
    def step(self) -> None:
        held = {name for name in self.catalog.host if self.catalog.is_moving(name)}
        held |= {*self.pinned, *self.catalog._loading}
        self.worker.obey(self.catalog)
        # After a step, both sides hold the same.
        fetching = {name for name, how in self.moving.items() if how == "fetching"}
        assert self.worker.memory - fetching == set(self.catalog.host) - fetching
        assert self.worker.disk == set(self.catalog.disk)
        kept = sum(
            bytes_of(h.num_rows) for n in held if n in self.catalog.host and (h := self.catalog.header(n))
        )
        assert self.catalog.host.num_bytes <= max(self.catalog.host_bytes, kept)

    @invariant()
    def bounded(self) -> None:
        for tier in (self.catalog.host, self.catalog.disk):
            known = [self.catalog.header(name) for name in tier]
            assert tier.num_bytes == sum(bytes_of(header.num_rows) for header in known if header)
        pinned = sum(bytes_of(h.num_rows) for n in self.pinned if (h := self.catalog.header(n)))
        assert self.catalog.disk.num_bytes <= max(self.catalog.disk_bytes, pinned)
        assert self.catalog.host.num_bytes <= catalog_module.TRANSIT_BYTES


class FakeIndex:
    """An index of nothing, that forgets all."""

    def records(self) -> list[Any]:
        return []

    def note(self, record: Any) -> None: ...

    def forget(self, header: Any) -> None: ...


TestCatalog = CatalogMachine.TestCase
TestCatalog.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)


@pytest.fixture(autouse=True)
def small_transit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "TRANSIT_BYTES", 400)
