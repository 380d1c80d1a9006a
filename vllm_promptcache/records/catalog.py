"""The catalog: which records there are, in memory and on disk, and which go when there is no room.

It decides, in the scheduler's process; workers hold the rows and do as they are told, in the order of steps.
So what it says of memory holds without asking. What it says of disks does not: a file may be gone or
damaged. A record is fetched from there before anything rests on it, and workers say whether they could.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vllm_promptcache.records.eviction import GreedyDual
from vllm_promptcache.records.index import IndexedRecord, RecordIndex
from vllm_promptcache.records.record_file import RecordHeader

# Rows that pass through memory on their way to a disk or from it, beside what is kept there.
TRANSIT_BYTES = 512 << 20
SECONDS_BETWEEN_SAVES = 5.0


@dataclass
class Orders:
    """What workers are to do with a step: records to drop from memory and to remove from disk before it, and
    those to write to disk after it."""

    dropped: list[str] = field(default_factory=list)
    removed: list[RecordHeader] = field(default_factory=list)
    written: list[RecordHeader] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.dropped or self.removed or self.written)


class RecordCatalog:
    """Records by name, in two tiers of so many bytes over all ranks.

    Life of a record: `begin`, then `complete` or `give_up`; from the next step on it is in memory until it is
    dropped, and on disk, if there is a tier, until it is removed. `fetching` and `fetched` bring it back
    into memory. Dropped is what `GreedyDual` says, but nothing that is pinned or on its way.
    """

    def __init__(
        self,
        host_bytes: int,
        disk_bytes: int,
        bytes_of: Callable[[int], int],
        fingerprint: str = "",
        num_ranks: int = 1,
        index: RecordIndex | None = None,
        tenant_fraction: float = 1.0,
    ):
        """``bytes_of`` says how many bytes so many rows take, over all ranks.

        Records of a tenant that hold more than ``tenant_fraction`` of a tier go first, and take no other
        tenant's place.
        """
        self.host_bytes = host_bytes
        self.disk_bytes = disk_bytes if index is not None else 0
        self.bytes_of = bytes_of
        self.fingerprint = fingerprint
        self.num_ranks = num_ranks
        self.index = index
        self.host = GreedyDual(tenant_fraction * max(host_bytes, TRANSIT_BYTES if self.disk_bytes else 0))
        self.disk = GreedyDual(tenant_fraction * self.disk_bytes)
        self.num_evictions = {"host": 0, "disk": 0}
        self._headers: dict[str, RecordHeader] = {}
        self._foreign: dict[str, RecordHeader] = {}
        self._pinned: set[str] = set()
        self._moving: set[str] = set()
        self._loading: list[str] = []
        self._completed: list[str] = []
        self._private: set[str] = set()
        self._next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
        self._orders = Orders()
        for record in index.records() if index is not None else ():
            self._find(record)
        self._make_room_on_disk()

    @property
    def is_open(self) -> bool:
        """Whether records are kept at all."""
        return bool(self.host_bytes or self.disk_bytes)

    def header(self, name: str) -> RecordHeader | None:
        """What is known of a record that is in memory or on disk; None if there is none."""
        return self._headers.get(name)

    def is_in_memory(self, name: str) -> bool:
        """Whether workers can load it in the step being scheduled."""
        return name in self.host and name not in self._moving

    def is_on_disk(self, name: str) -> bool:
        """Whether it can be fetched."""
        return name in self.disk and name not in self._moving

    def is_moving(self, name: str) -> bool:
        """Whether it is being recorded or fetched."""
        return name in self._moving

    def begin(
        self,
        name: str,
        num_rows: int,
        position: int,
        cost: float,
        *,
        is_private: bool = False,
        tenant: str = "",
    ) -> bool:
        """A unit is about to be encoded: whether its rows are to be kept, and room for them is there.

        A private record is never written to disk.
        """
        if name in self._headers or not self._make_room_in_memory(self.bytes_of(num_rows), tenant):
            return False
        header = RecordHeader(name, self.fingerprint, 0, self.num_ranks, num_rows, position, cost, tenant)
        self._headers[name] = header
        if is_private:
            self._private.add(name)
        self._arrive(name)
        return True

    def complete(self, name: str) -> None:
        """The step being scheduled writes the last of a record's rows."""
        self._completed.append(name)

    def give_up(self, name: str) -> None:
        """What was begun is not completed."""
        self._arrived(name)
        self._drop(name)

    def fetching(self, name: str) -> bool:
        """A record is about to be fetched: whether there is room for it in memory."""
        header = self._headers[name]
        if not self._make_room_in_memory(self.bytes_of(header.num_rows), header.tenant):
            return False
        if name in self._orders.dropped:  # workers have not been told yet
            self._orders.dropped.remove(name)
        self._arrive(name)
        return True

    def fetched(self, name: str, *, found: bool) -> None:
        """All workers have it in memory, or one has not and it is gone."""
        self._arrived(name)
        if not found:
            self._remove(name)
            self._drop(name)

    def load(self, name: str) -> None:
        """The step being scheduled loads a record that is in memory: it stays until then."""
        self.host.hold(name)
        self._loading.append(name)
        self.use(name)

    def use(self, name: str) -> None:
        """A record is loaded, or what was made from it is asked for."""
        for tier in (self.host, self.disk):
            if name in tier:
                tier.use(name)
        if name in self.disk and self.index is not None:
            header = self._headers[name]
            self.index.note(IndexedRecord(header, self.bytes_of(header.num_rows), time.time()))

    def pin(self, name: str) -> None:
        """Keep a record, whether it is there yet or not."""
        if name not in self._pinned:
            self._pinned.add(name)
            for tier in self._tiers_of(name):
                tier.hold(name)

    def unpin(self, name: str) -> None:
        """Let it go again."""
        if name in self._pinned:
            self._pinned.discard(name)
            for tier in self._tiers_of(name):
                tier.let_go(name)

    def discard(self, name: str) -> None:
        """Forget a record altogether."""
        if name in self._headers and name not in self._moving:
            self._remove(name)
            self._drop(name)

    def forget_all(self) -> None:
        """Forget every record that is not on its way, and keep none on disk from now on: the weights may have
        changed, and are not those any more that files are named by. Files stay, for those weights."""
        self.save()
        self.disk, self.disk_bytes = GreedyDual(), 0
        for name in [name for name in self._headers if name not in self._moving]:
            self._drop(name)
        self._foreign.clear()

    def take_orders(self) -> Orders:
        """What workers are to do with the step being scheduled."""
        while self.host.num_bytes > self.host_bytes and (name := self.host.evict()) is not None:
            self._dropped(name)
        while self._loading:
            self.host.let_go(self._loading.pop())
        for name in self._completed:
            self._arrived(name)
            self._write(self._headers[name])
        self._completed.clear()
        orders, self._orders = self._orders, Orders()
        return orders

    @property
    def has_orders(self) -> bool:
        """Whether workers are still to be told of something."""
        return bool(self._orders or self._completed or self._loading)

    def save(self) -> None:
        """Write the index."""
        if self.index is not None:
            self.index.save()

    def save_sometimes(self) -> None:
        """Write the index, if that was some time ago."""
        if self.index is not None and time.monotonic() >= self._next_save:
            self._next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
            self.index.save()

    def close(self) -> None:
        """Write the index, and leave the folder to others."""
        if self.index is not None:
            self.index.close()
            self.index = None

    def stats(self) -> dict[str, int]:
        """Counts for people."""
        return {
            "records_in_memory": len(self.host),
            "records_on_disk": len(self.disk),
            "bytes_in_memory": self.host.num_bytes,
            "bytes_on_disk": self.disk.num_bytes,
            "records_dropped": self.num_evictions["host"],
            "records_removed": self.num_evictions["disk"],
        }

    def stats_of(self, tenant: str) -> dict[str, int]:
        """What one tenant has here."""
        return {
            "records_in_memory": self.host.numbers.amounts.get(tenant, 0),
            "records_on_disk": self.disk.numbers.amounts.get(tenant, 0),
            "bytes_in_memory": self.host.shares.amounts.get(tenant, 0),
            "bytes_on_disk": self.disk.shares.amounts.get(tenant, 0),
        }

    @property
    def tenants(self) -> set[str]:
        """Who has records here."""
        return {str(tenant) for tier in (self.host, self.disk) for tenant in tier.numbers.amounts}

    def _find(self, record: IndexedRecord) -> None:
        header = record.header
        if header.fingerprint == self.fingerprint and header.num_ranks == self.num_ranks:
            self._headers[header.name] = header
            self._add_on_disk(header, record.num_bytes, record.uses)
        else:
            name = f"{header.name}-{header.fingerprint}.{header.num_ranks}"
            self._foreign[name] = header
            self.disk.add(name, record.num_bytes, 0.0, tenant=header.tenant)

    def _tiers_of(self, name: str) -> list[GreedyDual]:
        return [tier for tier in (self.host, self.disk) if name in tier]

    def _arrive(self, name: str) -> None:
        header = self._headers[name]
        self._moving.add(name)
        self.host.add(name, self.bytes_of(header.num_rows), header.cost, tenant=header.tenant)
        self.host.hold(name)
        if name in self._pinned:
            self.host.hold(name)
        if name in self.disk:
            self.disk.hold(name)

    def _arrived(self, name: str) -> None:
        self._moving.discard(name)
        for tier in self._tiers_of(name):
            tier.let_go(name)

    def _write(self, header: RecordHeader) -> None:
        num_bytes = self.bytes_of(header.num_rows)
        if self.index is not None and num_bytes <= self.disk_bytes and header.name not in self._private:
            self._orders.written.append(header)
            self._add_on_disk(header, num_bytes)
            self.index.note(IndexedRecord(header, num_bytes, time.time()))
            self._make_room_on_disk()

    def _add_on_disk(self, header: RecordHeader, num_bytes: int, uses: int = 1) -> None:
        self.disk.add(header.name, num_bytes, header.cost, uses, header.tenant)
        if header.name in self._pinned:
            self.disk.hold(header.name)

    def _make_room_in_memory(self, num_bytes: int, tenant: str) -> bool:
        room = max(self.host_bytes, TRANSIT_BYTES if self.disk_bytes else 0)
        if num_bytes > room:
            return False
        while self.host.num_bytes + num_bytes > room:
            is_over = self.host.shares.is_over(tenant, num_bytes)
            name = self.host.evict_of(tenant) if is_over else self.host.evict()
            if name is None:
                return False
            self._dropped(name)
        return True

    def _make_room_on_disk(self) -> None:
        while self.disk.num_bytes > self.disk_bytes and (name := self.disk.evict()) is not None:
            self.num_evictions["disk"] += 1
            self._unlinked(name)

    def _remove(self, name: str) -> None:
        if name in self.disk:
            self.disk.remove(name)
            self._unlinked(name)

    def _unlinked(self, name: str) -> None:
        header = self._foreign.pop(name, None) or self._headers[name]
        if self.index is not None:
            self.index.forget(header)
            if header.fingerprint != self.fingerprint or header.num_ranks != self.num_ranks:
                self.index.unlink(header)
                return
        if header in self._orders.written:
            self._orders.written.remove(header)
        else:
            self._orders.removed.append(header)
        if name not in self.host:
            self._headers.pop(name, None)

    def _drop(self, name: str) -> None:
        self.host.remove(name)
        self._orders.dropped.append(name)
        if name not in self.disk:
            self._headers.pop(name, None)
            self._private.discard(name)

    def _dropped(self, name: str) -> None:
        self.num_evictions["host"] += 1
        self._drop(name)
