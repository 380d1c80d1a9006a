"""A folder of record files, as one worker sees it: its own rank's, of its model and settings."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_promptcache.records.record_file import (
    RecordHeader,
    Rows,
    UnreadableRecordError,
    file_name,
    read_record,
    write_record,
)

logger = logging.getLogger("vllm.promptcache")

# Rows that wait to be written; more are not written, so that a slow disk takes no memory.
MAX_WAITING_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class _Change:
    """What is to be done to a record's file: written with ``rows``, or removed."""

    header: RecordHeader
    rows: Rows | None


class RecordFolder:
    """Writes and removes one rank's records in the background, and reads them.

    No call waits for what is to be written: the last that was asked for of a record holds from then on.
    Whatever goes wrong is told in the log, once a kind, and the record is absent: no call raises.
    """

    def __init__(self, path: Path, rank: int, num_ranks: int):
        self.path = path
        self.rank = rank
        self.num_ranks = num_ranks
        self.num_failures = 0
        self._waiting: queue.Queue[_Change | None] = queue.Queue()
        # By record, the last change that is waiting.
        self._changes: dict[str, _Change] = {}
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._last_complaint = ""
        self._writer = threading.Thread(target=self._change_all, name="prompt-cache-records", daemon=True)
        self._writer.start()
        # A process that ends does not stop the writer in the middle of something.
        atexit.register(self.close)

    def write(self, header: RecordHeader, rows: Rows) -> None:
        """Have a record written. Its rows must not change any more."""
        num_bytes = _bytes_of(rows)
        with self._lock:
            if self._waiting_bytes + num_bytes > MAX_WAITING_BYTES:
                self._complain(header.name, "the disk is too slow, and too much waits to be written")
                return
            self._waiting_bytes += num_bytes
        self._have(_Change(replace(header, rank=self.rank, num_ranks=self.num_ranks), rows))

    def read(self, header: RecordHeader) -> Rows | None:
        """A record's rows, or None where it is absent or unusable; then its file is removed."""
        with self._lock:
            change = self._changes.get(header.name)
        path = self._path_of(header)
        try:
            if change is None:
                found, rows = read_record(path, header.name, header.fingerprint)
            elif change.rows is None:
                return None
            else:
                found, rows = change.header, change.rows
            if (found.num_rows, found.position) != (header.num_rows, header.position):
                raise UnreadableRecordError("the index says something else of it")
            return rows
        except UnreadableRecordError as error:
            self._complain(header.name, f"{path.name} is not used, and encoded again: {error}")
            self.remove(header)
            return None

    def remove(self, header: RecordHeader) -> None:
        """Have a record's file removed, if it is there."""
        self._have(_Change(header, None))

    def flush(self) -> None:
        """Wait until everything is done."""
        self._waiting.join()

    def close(self) -> None:
        """Do what waits, and end."""
        atexit.unregister(self.close)
        self._waiting.put(None)
        self._writer.join()

    def _have(self, change: _Change) -> None:
        with self._lock:
            self._changes[change.header.name] = change
            self._waiting.put(change)

    def _path_of(self, header: RecordHeader) -> Path:
        return self.path / file_name(header.name, header.fingerprint, self.rank, self.num_ranks)

    def _change_all(self) -> None:
        while (change := self._waiting.get()) is not None:
            name = change.header.name
            with self._lock:
                is_last = self._changes.get(name) is change
            try:
                if is_last:
                    self._change(change)
            except OSError as error:
                self._complain(name, f"cannot be written to {self.path}: {error.strerror or error}")
            finally:
                with self._lock:
                    self._waiting_bytes -= _bytes_of(change.rows or [])
                    if self._changes.get(name) is change:
                        del self._changes[name]
                self._waiting.task_done()
        self._waiting.task_done()

    def _change(self, change: _Change) -> None:
        if change.rows is not None:
            write_record(self.path, change.header, change.rows)
            return
        with contextlib.suppress(OSError):
            self._path_of(change.header).unlink(missing_ok=True)

    def _complain(self, name: str, what: str) -> None:
        self.num_failures += 1
        if what != self._last_complaint:
            self._last_complaint = what
            logger.warning("Prompt cache: record %s: %s", name[:12], what)


def _bytes_of(rows: Rows) -> int:
    return sum(t.nbytes for pair in rows for t in pair)
