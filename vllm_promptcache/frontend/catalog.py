"""The catalog: what is registered, in a file that all API servers of one server share.

SQLite, since several processes read and write it and any of them may end at any moment.
"""

from __future__ import annotations

import asyncio
import atexit
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

# The file, for the processes that a server starts (`arguments.prepare`).
CATALOG_VARIABLE = "VLLM_PROMPT_CACHE_CATALOG"
# Which start of the engines the processes belong to.
RUN_VARIABLE = "VLLM_PROMPT_CACHE_RUN"

# In a folder in which it outlives servers.
FILE = "catalog.sqlite3"

logger = logging.getLogger("vllm.promptcache")

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (kind TEXT, name TEXT, value TEXT NOT NULL, PRIMARY KEY (kind, name));
CREATE TABLE IF NOT EXISTS runs (run TEXT NOT NULL);
"""


def share_catalog() -> None:
    """Have this process, and those that it starts, use one catalog, which goes when this process ends."""
    if CATALOG_VARIABLE not in os.environ:
        folder = tempfile.mkdtemp(prefix="vllm-promptcache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[CATALOG_VARIABLE] = str(Path(folder, "catalog.sqlite3"))
        os.environ[RUN_VARIABLE] = uuid4().hex


class Catalog:
    """Entries of several kinds by name, each in JSON's types.

    One of these a process. Changes are made while ``changing()``, by one process at a time; reading needs
    no lock, and ``has_changed`` costs one query of a page that is in memory.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._run = run
        self._lock = path.with_suffix(".lock").open("a")
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._seen: int | None = None
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(_TABLES)
        except sqlite3.Error:
            self.close()
            raise

    @classmethod
    def of_server(cls, folder: str | None = None) -> Catalog | None:
        """The catalog of this process's server, which outlives it in a ``folder``; None where there is none,
        and its front end is the only one."""
        run = os.environ.get(RUN_VARIABLE) or uuid4().hex
        if folder is not None:
            path = Path(folder).expanduser() / FILE
            try:
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                return cls._mended(path, run)
            except (OSError, sqlite3.Error) as error:
                logger.warning("Prompt cache: what is registered will not outlive the server: %s", error)
        shared = os.environ.get(CATALOG_VARIABLE)
        return cls(Path(shared), run) if shared else None

    @classmethod
    def _mended(cls, path: Path, run: str) -> Catalog:
        """The catalog of a file, which begins anew where the file is damaged."""
        try:
            catalog = cls(path, run)
            if catalog._database.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return catalog
            catalog.close()
            raise sqlite3.DatabaseError("its pages do not fit together")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            logger.warning("Prompt cache: %s is damaged; it is put aside and begun anew: %s", path, error)
        path.replace(path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        return cls(path, run)

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
        self._lock.close()

    def has_changed(self) -> bool:
        """Whether another process has written since this one last asked for all entries."""
        return self._version() != self._seen

    def entries(self, kind: str) -> dict[str, Any]:
        """All entries of a kind, by name."""
        self._seen = self._version()
        rows = self._database.execute("SELECT name, value FROM entries WHERE kind = ?", (kind,)).fetchall()
        return {name: json.loads(value) for name, value in rows}

    def put(self, kind: str, entries: Mapping[str, Any]) -> None:
        """Add entries, or put them in the place of those of the same names; all or none."""
        rows = [(kind, name, json.dumps(value)) for name, value in entries.items()]
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def remove(self, kind: str, name: str) -> None:
        """Remove an entry, if it is there."""
        self._database.execute("DELETE FROM entries WHERE kind = ? AND name = ?", (kind, name))

    def begins_run(self) -> bool:
        """Whether this process is the first of its server to ask: the engines know nothing of the entries.

        What the last server was started with goes then: this one is told itself.
        """
        if self._database.execute("SELECT run FROM runs").fetchone() == (self._run,):
            return False
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM entries WHERE json_extract(value, '$.source') != 'api'")
            self._database.execute("DELETE FROM runs")
            self._database.execute("INSERT INTO runs VALUES (?)", (self._run,))
        return True

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold the right to change what is registered; it ends with the process that holds it."""
        await asyncio.to_thread(fcntl.flock, self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _version(self) -> int:
        """Another number whenever another connection has written."""
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])
