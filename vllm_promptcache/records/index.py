"""The index of a folder of records: what is there, how large, and when it was last used.

It only saves looking into every file: whatever it lacks or has too much is mended from the files, and a lost
or damaged index is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_promptcache.records.record_file import (
    SUFFIX,
    RecordHeader,
    UnreadableRecordError,
    file_name,
    read_header,
)

logger = logging.getLogger("vllm.promptcache")

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  name TEXT, fingerprint TEXT, ranks INTEGER, rows INTEGER, position INTEGER, cost REAL, bytes INTEGER,
  used REAL, uses INTEGER, pinned INTEGER, tenant TEXT, PRIMARY KEY (name, fingerprint, ranks));
CREATE TABLE IF NOT EXISTS weights (file TEXT PRIMARY KEY, digest TEXT);
"""


@dataclass(frozen=True)
class IndexedRecord:
    """A record that is on disk for all ranks; ``used`` is the time of its last use, in seconds."""

    header: RecordHeader
    num_bytes: int
    used: float
    uses: int = 1
    pinned: bool = False


class FolderInUseError(Exception):
    """Another server uses the folder."""


class RecordIndex:
    """The index of a folder, for the one process that decides what is kept there.

    Raises:
        OSError: the folder cannot be made or written to.
        FolderInUseError: another process has it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = open(folder / ".lock", "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise FolderInUseError(f"{folder} is in use by another server") from None
        self._changes: dict[tuple[str, str, int], IndexedRecord | None] = {}
        self._database = self._open()

    def records(self) -> list[IndexedRecord]:
        """What the files hold, least recently used first; unfinished and unreadable files are removed."""
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)
        files: dict[tuple[str, str, int], list[Path]] = {}
        for path in self.folder.glob(f"*{SUFFIX}"):
            key = _key_of(path)
            if key is not None:
                files.setdefault(key, []).append(path)
        known = self._rows()
        found: list[IndexedRecord] = []
        for key, paths in files.items():
            record = known.pop(key, None) or _look(paths)
            if record is None or len(paths) != record.header.num_ranks:
                for path in paths:
                    path.unlink(missing_ok=True)
                continue
            self._changes[key] = record
            found.append(record)
        self._changes.update(dict.fromkeys(known))
        self.save()
        return sorted(found, key=lambda record: record.used)

    def note(self, record: IndexedRecord) -> None:
        """A record is on disk, or was used."""
        self._changes[_key(record.header)] = record

    def forget(self, header: RecordHeader) -> None:
        """A record is not on disk any more."""
        self._changes[_key(header)] = None

    def unlink(self, header: RecordHeader) -> None:
        """Remove a record's files: those of other models, of which no worker knows."""
        for rank in range(header.num_ranks):
            path = self.folder / file_name(header.name, header.fingerprint, rank, header.num_ranks)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write what changed. A failure costs the times of last use, and is told in the log."""
        changes, self._changes = self._changes, {}
        gone = [key for key, record in changes.items() if record is None]
        there = [_row(record) for record in changes.values() if record is not None]
        with self._damage_told(), self._database:
            self._database.executemany("DELETE FROM records WHERE name=? AND fingerprint=? AND ranks=?", gone)
            self._database.executemany("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?)", there)

    def weights(self) -> dict[str, str]:
        """Digests of weights' files that were read before."""
        with self._damage_told():
            return dict(self._database.execute("SELECT file, digest FROM weights"))
        return {}

    def note_weights(self, digests: dict[str, str]) -> None:
        """Remember digests of weights' files."""
        with self._damage_told(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO weights VALUES (?,?)", digests.items())

    def close(self) -> None:
        """Write what changed, and leave the folder to others."""
        self.save()
        self._database.close()
        self._lock.close()

    def _open(self) -> sqlite3.Connection:
        path = self.folder / "index.sqlite"
        for _ in range(2):
            database = sqlite3.connect(path, check_same_thread=False)
            try:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=OFF")  # made again from the files if it is damaged
                database.executescript(SCHEMA)
                database.execute("SELECT tenant FROM records LIMIT 1").fetchall()
                if database.execute("PRAGMA quick_check").fetchone() == ("ok",):
                    return database
            except sqlite3.Error as error:
                logger.warning("Prompt cache: %s is damaged and made again: %s", path, error)
            database.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        raise OSError(f"{path} cannot be made")

    def _rows(self) -> dict[tuple[str, str, int], IndexedRecord]:
        found: dict[tuple[str, str, int], IndexedRecord] = {}
        with self._damage_told():
            for row in self._database.execute("SELECT * FROM records"):
                name, fingerprint, ranks, rows, position, cost, num_bytes, used, uses, pinned, tenant = row
                header = RecordHeader(name, fingerprint, 0, ranks, rows, position, cost, tenant)
                record = IndexedRecord(header, num_bytes, used, uses, bool(pinned))
                found[name, fingerprint, ranks] = record
        return found

    @contextlib.contextmanager
    def _damage_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            logger.warning("Prompt cache: the index of %s cannot be used: %s", self.folder, error)


def _key(header: RecordHeader) -> tuple[str, str, int]:
    return header.name, header.fingerprint, header.num_ranks


def _row(record: IndexedRecord) -> tuple[object, ...]:
    header = record.header
    facts = (header.num_rows, header.position, header.cost, record.num_bytes)
    return (*_key(header), *facts, record.used, record.uses, int(record.pinned), header.tenant)


def _key_of(path: Path) -> tuple[str, str, int] | None:
    """A record's name, fingerprint and number of ranks from a file's name; None if it is none of ours."""
    stem, _, rank = path.name.removesuffix(SUFFIX).rpartition(".")
    name, _, fingerprint = stem.partition("-")
    ranks = rank.rpartition("-")[2]
    return (name, fingerprint, int(ranks)) if name and fingerprint and ranks.isdecimal() else None


def _look(paths: Iterable[Path]) -> IndexedRecord | None:
    """What files say of themselves that the index does not know."""
    num_bytes, header = 0, None
    try:
        for path in paths:
            header = read_header(path)
            num_bytes += path.stat().st_size
    except (UnreadableRecordError, OSError) as error:
        logger.warning("Prompt cache: %s is not used, and removed: %s", path, error)
        return None
    return None if header is None else IndexedRecord(header, num_bytes, time.time())
