"""The index agrees with the files, whatever became of it or of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.records.test_record_file import HEADER, rows
from vllm_promptcache.records.index import FolderInUseError, IndexedRecord, RecordIndex
from vllm_promptcache.records.record_file import write_record


def write(folder: Path, number: int, num_ranks: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    header = replace(HEADER, name=f"{number:048}", num_ranks=num_ranks, cost=float(number))
    for rank in range(num_ranks):
        write_record(folder, replace(header, rank=rank), rows(number))


def names(index: RecordIndex) -> list[int]:
    return [int(record.header.name) for record in index.records()]


def test_uses_are_remembered(tmp_path: Path) -> None:
    index = RecordIndex(tmp_path)
    for number in range(3):
        write(tmp_path, number)
        header = replace(HEADER, name=f"{number:048}")
        index.note(IndexedRecord(header, 100, used=float(10 - number), uses=number, pinned=number == 1))
    index.close()
    again = RecordIndex(tmp_path)
    found = again.records()
    assert [int(r.header.name) for r in found] == [2, 1, 0]
    assert [r.uses for r in found] == [2, 1, 0]
    assert [r.pinned for r in found] == [False, True, False]
    again.close()


@pytest.mark.parametrize("damage", ["lost", "garbage", "truncated", "behind"])
def test_it_is_made_again_from_the_files(damage: str, tmp_path: Path) -> None:
    index = RecordIndex(tmp_path)
    write(tmp_path, 0)
    if damage != "behind":
        index.note(IndexedRecord(replace(HEADER, name=f"{0:048}"), 1, 1.0))
    index.close()
    path = tmp_path / "index.sqlite"
    if damage == "lost":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"\x00\xff" * 5000)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    write(tmp_path, 1)
    again = RecordIndex(tmp_path)
    assert sorted(names(again)) == [0, 1]
    again.close()
    once_more = RecordIndex(tmp_path)
    assert sorted(names(once_more)) == [0, 1]
    once_more.close()


def test_files_that_are_gone_are_forgotten_and_unfinished_ones_removed(tmp_path: Path) -> None:
    index = RecordIndex(tmp_path)
    for number in range(2):
        index.note(IndexedRecord(replace(HEADER, name=f"{number:048}"), 1, 1.0))
    write(tmp_path, 1)
    (tmp_path / ".x.safetensors.17.part").write_bytes(b"half")
    (tmp_path / f"{7:048}-{'f' * 32}.0-of-1.safetensors").write_bytes(b"not a record")
    (tmp_path / "mine.txt").write_text("kept")
    (tmp_path / "model.safetensors").write_text("kept")
    index.save()
    assert names(index) == [1]
    assert sorted(p.suffix for p in tmp_path.iterdir() if "index" not in p.name) == [
        "",
        ".safetensors",
        ".safetensors",
        ".txt",
    ]
    index.close()


def test_a_record_of_which_a_rank_is_missing_is_none(tmp_path: Path) -> None:
    write(tmp_path, 0, num_ranks=2)
    write(tmp_path, 1, num_ranks=2)
    next(tmp_path.glob(f"{1:048}*.1-of-2.*")).unlink()
    index = RecordIndex(tmp_path)
    (record,) = index.records()
    assert int(record.header.name) == 0
    assert record.num_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
    index.close()


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    index = RecordIndex(tmp_path)
    with pytest.raises(FolderInUseError, match="another server"):
        RecordIndex(tmp_path)
    index.close()
    RecordIndex(tmp_path).close()
