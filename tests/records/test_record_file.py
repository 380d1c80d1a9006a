"""Record files: whole and of what was asked for, or told to be absent."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vllm_promptcache.records import record_file
from vllm_promptcache.records.record_file import (
    RecordHeader,
    Rows,
    UnreadableRecordError,
    file_name,
    read_header,
    read_record,
    write_record,
)

HEADER = RecordHeader("a" * 48, "f" * 32, 0, 1, 7, 40, 12.5)


def rows(seed: int = 0, dtype: torch.dtype = torch.bfloat16, num_rows: int = 7) -> Rows:
    """Rows of two kinds of layers."""
    generator = torch.Generator().manual_seed(seed)

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return [(of(3, num_rows, 2, 8), of(3, num_rows, 2, 8)), (of(1, num_rows, 4, 16), of(1, num_rows, 4, 12))]


def same(one: Rows, other: Rows) -> bool:
    return all(torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_what_is_written_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, rows(dtype=dtype))
    header, read = read_record(path, HEADER.name, HEADER.fingerprint)
    assert header == HEADER == read_header(path)
    assert same(read, rows(dtype=dtype))
    assert [p.name for p in tmp_path.iterdir()] == [file_name(HEADER.name, HEADER.fingerprint, 0, 1)]
    assert path.stat().st_mode & 0o077 == 0


def test_another_models_file_is_not_read(tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, rows())
    with pytest.raises(UnreadableRecordError, match="another model"):
        read_record(path, HEADER.name, "e" * 32)
    with pytest.raises(UnreadableRecordError, match="another model"):
        read_record(path, "b" * 48, HEADER.fingerprint)


@pytest.mark.parametrize("end", [0, 1, 7, 8, 9, 100, 300, -400, -100, -1])
def test_a_truncated_file_is_not_read(end: int, tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, rows())
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UnreadableRecordError):
        read_record(path, HEADER.name, HEADER.fingerprint)


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, rows(num_rows=2))
    whole = path.read_bytes()
    before = read_record(path, HEADER.name, HEADER.fingerprint)[1]
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found, read = read_record(path, HEADER.name, HEADER.fingerprint)
        except UnreadableRecordError:
            continue
        # What is left is a change of spelling in the header.
        assert found == HEADER
        assert same(read, before)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a record",
        b"\xff" * 64,
        (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (18).to_bytes(8, "little") + b'{"__metadata__":1}',
        (900_000).to_bytes(8, "little") + b"[" * 900_000,
    ],
)
def test_a_foreign_file_is_not_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UnreadableRecordError):
        read_header(path)
    with pytest.raises(UnreadableRecordError):
        read_record(path, HEADER.name, HEADER.fingerprint)


@pytest.mark.parametrize("change", [{"num_rows": "7"}, {"more": 1}, {"name": None}])
def test_a_header_of_other_fields_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, rows())
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["record"] = json.dumps(json.loads(header["__metadata__"]["record"]) | change)
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[end:])
    with pytest.raises(UnreadableRecordError, match="header is none of a record"):
        read_record(path, HEADER.name, HEADER.fingerprint)


def test_rows_under_anothers_header_are_noticed(tmp_path: Path) -> None:
    """A header that was changed to what is asked for."""
    path = write_record(tmp_path, replace(HEADER, position=41), rows())
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["record"] = header["__metadata__"]["record"].replace("41", "40")
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[end:])
    with pytest.raises(UnreadableRecordError, match="checksum"):
        read_record(path, HEADER.name, HEADER.fingerprint)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_file.os, call, fail)
    with pytest.raises(OSError, match="No space"):
        write_record(tmp_path, HEADER, rows())
    assert list(tmp_path.iterdir()) == []


FORK_AND_KILL = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
from tests.records.test_record_file import HEADER, rows
from vllm_promptcache.records.record_file import write_record
folder, drawn, kills = Path(sys.argv[1]), random.Random(0), 0
all_rows = [rows(number) for number in range(50)]
for _ in range(100):
    child = os.fork()
    if not child:
        number = drawn.randrange(50)
        while True:
            number += 1
            header = replace(HEADER, name=f"{number % 50:048}", position=number)
            write_record(folder, header, all_rows[number % 50])
    time.sleep(drawn.random() / 50)
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(kills)
"""


def test_a_killed_writer_leaves_whole_records_only(tmp_path: Path) -> None:
    """Killed a hundred times: whoever comes then reads every record that is there, and it is right."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FORK_AND_KILL, str(tmp_path)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split()[-1] == "100"
    records = list(tmp_path.glob("*.safetensors"))
    assert records
    for path in records:
        header, read = read_record(path, path.name[:48], HEADER.fingerprint)
        assert same(read, rows(int(path.name[:48])))
        assert header.position % 50 == int(path.name[:48])
    assert len(list(tmp_path.glob(".*.part"))) <= 100
