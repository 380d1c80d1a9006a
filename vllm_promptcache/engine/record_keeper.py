"""A worker's records: rows in memory, files on disk, as the scheduler's catalog orders."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from vllm_promptcache.engine.messages import Recording
from vllm_promptcache.records.catalog import Orders
from vllm_promptcache.records.folder import RecordFolder
from vllm_promptcache.records.record_file import RecordHeader
from vllm_promptcache.records.row_store import RowStore

# Files that are read at once.
NUM_READERS = 4


class RecordKeeper:
    """Does as it is told; only what it is told to fetch may fail, and then it says so.

    Records live in host memory; ``folder`` is None where none are kept on disk.
    """

    def __init__(
        self, kinds: Sequence[Hashable], dtype: torch.dtype, *, packs: bool, folder: RecordFolder | None
    ):
        self.rows = RowStore(kinds, torch.device("cpu"), dtype if packs else None)
        self.folder = folder
        self._to_write: list[RecordHeader] = []

    def begin(self, recording: Recording | None) -> None:
        """A request that keeps records takes its slots."""
        if recording is not None:
            self.rows.open_together(recording.records)

    def obey(self, orders: Orders) -> None:
        """Before a step."""
        self.rows.drop(orders.dropped)
        if self.folder is not None:
            for header in orders.removed:
                self.folder.remove(header)
            self._to_write += orders.written

    def step_done(self) -> None:
        """After a step: write what it completed."""
        for header in self._to_write:
            if self.folder is not None and header.name in self.rows:
                self.folder.write(header, self.rows.all_rows(header.name))
        self._to_write.clear()

    def close(self) -> None:
        """Write what waits for that, and end."""
        if self.folder is not None:
            self.folder.close()
            self.folder = None

    def fetch(self, headers: Sequence[RecordHeader]) -> list[bool]:
        """Bring records from disk into memory: for each whether it is there now."""
        if len(headers) < 2:
            return [self._fetch(header) for header in headers]
        # Most of reading is hashing, which needs no interpreter.
        with ThreadPoolExecutor(NUM_READERS) as readers:
            return list(readers.map(self._fetch, headers))

    def _fetch(self, header: RecordHeader) -> bool:
        if header.name in self.rows:
            return True
        found = self.folder.read(header) if self.folder is not None else None
        return found is not None and self.rows.put(header.name, found)
