"""Disks as they are: full, read-only, and left by processes that were killed. In processes of their own, with
nothing put in place of the system's own errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

BEGIN = """
import logging, os, random, resource, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tests.records.test_record_file import HEADER, rows, same
from vllm_promptcache.records.catalog import RecordCatalog
from vllm_promptcache.records.folder import RecordFolder
from vllm_promptcache.records.index import IndexedRecord, RecordIndex
logging.basicConfig(stream=sys.stdout, format="%(message)s")
path = Path(sys.argv[1])
"""

# Whoever may write anywhere becomes somebody who may not.
READ_ONLY = """
RecordIndex(path).close()
path.chmod(0o555)
if not os.getuid():
    os.setresuid(65534, 65534, 65534)
folder = RecordFolder(path, 0, 1)
folder.write(HEADER, rows())
folder.flush()
print("read:", folder.read(HEADER))
try:
    RecordIndex(path)
except OSError as error:
    print("no index:", type(error).__name__)
"""

# No file may grow beyond so many bytes: the system refuses the rest of a write, as a full disk does.
FULL = """
folder = RecordFolder(path, 0, 1)
folder.write(replace(HEADER, name=f"{0:048}"), rows(0))
folder.flush()
size = next(path.glob("*.safetensors")).stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
folder.write(replace(HEADER, name=f"{1:048}"), rows(1))
folder.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
folder.write(replace(HEADER, name=f"{2:048}"), rows(2))
folder.flush()
found = [folder.read(replace(HEADER, name=f"{n:048}")) for n in range(3)]
print("found:", [one is not None and same(one, rows(n)) for n, one in enumerate(found)])
print("files:", len(list(path.iterdir())))
"""

# A start looks into the folder, reads all that it says is there, and writes and removes until it is killed.
KILLED = """
drawn, kills, read = random.Random(0), 0, 0
all_rows = [rows(number) for number in range(50)]
size = sum(t.nbytes for pair in all_rows[0] for t in pair)

def start():
    index = RecordIndex(path)
    catalog = RecordCatalog(0, 20 * size, lambda num_rows: size, HEADER.fingerprint, 1, index)
    folder = RecordFolder(path, 0, 1)
    wrong = lost = right = 0
    for name in list(catalog.disk):
        found = folder.read(catalog.header(name))
        lost += found is None
        wrong += found is not None and not same(found, all_rows[int(name)])
        right += found is not None
        if found is None:
            catalog.discard(name)
    return index, catalog, folder, wrong, lost, right

for turn in range(100):
    child = os.fork()
    if not child:
        index, catalog, folder, wrong, lost, right = start()
        if wrong or lost:
            os._exit(3)
        number = drawn.randrange(50) + turn
        while True:
            number += 7
            name = f"{number % 50:048}"
            if catalog.begin(name, HEADER.num_rows, HEADER.position, 9.0):
                catalog.complete(name)
                orders = catalog.take_orders()
                for header in orders.removed:
                    folder.remove(header)
                for header in orders.written:
                    folder.write(header, all_rows[int(header.name)])
            index.save()
    time.sleep(0.02 + drawn.random() / 20)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    kills += os.WIFSIGNALED(status)
index, catalog, folder, wrong, lost, right = start()
print("kills:", kills)
print("wrong:", wrong, "lost:", lost, "some:", right > 0)
print("unfinished:", len(list(path.glob(".*.part"))))
index.close()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that whoever runs the script can reach."""
    path = Path(tempfile.mkdtemp(prefix="records-"))
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def run(script: str, folder: Path) -> str:
    """What a script has said."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", BEGIN + script, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_read_only_folder_is_told(folder: Path) -> None:
    said = run(READ_ONLY, folder)
    assert "cannot be written to" in said
    assert "Permission denied" in said
    assert "read: None" in said
    assert "no index: " in said
    assert not list(folder.glob("*.safetensors"))


def test_a_full_disk_is_told_and_leaves_nothing(folder: Path) -> None:
    """What was there stays, what did not fit is absent, and what comes when there is room is written."""
    said = run(FULL, folder)
    assert "cannot be written to" in said
    assert "found: [True, False, True]" in said
    assert "files: 2" in said


def test_every_start_reads_what_killed_ones_have_left(folder: Path) -> None:
    """Killed a hundred times while it writes, removes and notes: nothing wrong is read, nothing that the
    index says is there is missing, and nothing unfinished stays."""
    said = run(KILLED, folder)
    assert "kills: 100" in said, said
    assert "wrong: 0 lost: 0 some: True" in said
    assert "unfinished: 0" in said
