"""A worker's folder of records: what goes wrong is told, and absent."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.records.test_record_file import HEADER, rows, same
from vllm_promptcache.records import folder as folder_module
from vllm_promptcache.records.folder import RecordFolder
from vllm_promptcache.records.record_file import write_record


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is told in the log: vLLM's loggers hand nothing on."""
    logger = logging.Logger("of this test")
    logger.addHandler(caplog.handler)
    monkeypatch.setattr(folder_module, "logger", logger)
    return caplog


def test_records_come_back(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path, 1, 2)
    for number in range(5):
        folder.write(replace(HEADER, name=f"{number:048}"), rows(number))
    for number in range(5):
        found = folder.read(replace(HEADER, name=f"{number:048}"))
        assert found is not None
        assert same(found, rows(number))
    folder.remove(replace(HEADER, name=f"{0:048}"))
    folder.close()
    assert len(list(tmp_path.glob("*.1-of-2.safetensors"))) == 4


@pytest.mark.parametrize("damage", ["tampered", "truncated", "empty", "foreign", "no record", "unit"])
def test_damage_is_told_and_the_file_removed(
    damage: str, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    """Also a whole record of another model, or of another unit, in the place of this one."""
    folder = RecordFolder(tmp_path, 0, 1)
    folder.write(HEADER, rows())
    folder.flush()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage in ("foreign", "unit"):
        other = {"foreign": {"fingerprint": "e" * 32}, "unit": {"name": "9" * 48}}[damage]
        data = bytearray(write_record(tmp_path / "..", replace(HEADER, **other), rows()).read_bytes())
    elif damage == "tampered":
        data[-5] ^= 1
    else:
        data = {"truncated": data[:-9], "empty": data[:0], "no record": bytearray(b"text " * 50)}[damage]
    path.write_bytes(data)
    assert folder.read(HEADER) is None
    assert f"{path.name} is not used, and encoded again: " in told.text
    folder.flush()
    assert list(tmp_path.iterdir()) == []
    assert folder.read(HEADER) is None


def test_no_call_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is there already, what is to be removed is not any more; the last change holds."""
    may_write = threading.Event()
    write = folder_module.write_record

    def slowly(*record: Any) -> None:
        assert may_write.wait(60)
        write(*record)

    monkeypatch.setattr(folder_module, "write_record", slowly)
    folder = RecordFolder(tmp_path, 0, 1)
    first, second, third = (replace(HEADER, name=f"{number:048}") for number in range(3))
    for header in (first, second, third):
        folder.write(header, rows(int(header.name)))
    folder.remove(second)
    folder.remove(third)
    folder.write(third, rows(7))
    assert list(tmp_path.iterdir()) == []
    found = [folder.read(header) for header in (first, second, third)]
    assert found[1] is None
    assert found[0] is not None and same(found[0], rows(0))
    assert found[2] is not None and same(found[2], rows(7))
    assert folder.read(replace(first, position=first.position + 1)) is None  # and it is removed
    may_write.set()
    folder.flush()
    assert [path.name[:48] for path in tmp_path.iterdir()] == [third.name]
    again = folder.read(third)
    assert again is not None and same(again, rows(7))
    folder.close()


def test_a_folder_that_is_gone_is_told_once(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    folder = RecordFolder(tmp_path / "gone", 0, 1)
    for number in range(3):
        folder.write(replace(HEADER, name=f"{number:048}"), rows())
    folder.flush()
    assert told.text.count("cannot be written") == 1
    assert folder.num_failures == 3
    assert folder.read(replace(HEADER, name=f"{0:048}")) is None


def test_what_waits_for_a_slow_disk_is_bounded(
    tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "MAX_WAITING_BYTES", 10)
    folder = RecordFolder(tmp_path, 0, 1)
    folder.write(HEADER, rows())
    folder.flush()
    assert "too slow" in told.text
    assert list(tmp_path.iterdir()) == []
