"""Record files: a unit's rows on disk, complete and checked, or not there.

A file is written beside its place, flushed to the disk and renamed, so it is there whole or not at all. Its
header says what it holds and of what (`fingerprint`); its checksum covers both.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save

# To be counted up whenever rows are kept, or read, in another way.
FORMAT = 2
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 1 << 20

Rows = list[tuple[torch.Tensor, torch.Tensor]]


class UnreadableRecordError(Exception):
    """A file is not the record that was asked for; says why."""


@dataclass(frozen=True)
class RecordHeader:
    """What a record file says of itself.

    Attributes:
        name: what the record is called (``naming.record_name``).
        fingerprint: everything beside the unit that its states depend on.
        rank, num_ranks: of tensor parallelism.
        num_rows: kept tokens of the unit.
        position: where the unit's first token stood.
        cost: what encoding it again would cost (``eviction.encoding_cost``).
        tenant: whose it is (``shares.tenant_name``).
    """

    name: str
    fingerprint: str
    rank: int
    num_ranks: int
    num_rows: int
    position: int
    cost: float
    tenant: str = ""


def file_name(name: str, fingerprint: str, rank: int, num_ranks: int) -> str:
    """What a record's file of one rank is called."""
    return f"{name}-{fingerprint}.{rank}-of-{num_ranks}{SUFFIX}"


def write_record(folder: Path, header: RecordHeader, rows: Rows) -> Path:
    """Write rows, a key and a value of each kind of layer, so that a kill leaves the file whole or absent.

    Raises:
        OSError: there is no room, or no right to write. Nothing is left behind.
    """
    tensors = _tensors(rows)
    metadata = {"record": json.dumps(asdict(header)), "checksum": _checksum(header, tensors)}
    data = save(tensors, metadata=metadata)
    path = folder / file_name(header.name, header.fingerprint, header.rank, header.num_ranks)
    beside = folder / f".{path.name}.{os.getpid()}.part"
    try:
        with open(beside, "wb", opener=_private) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _flush_folder(folder)
    return path


def read_header(path: Path) -> RecordHeader:
    """What a file says of itself, without reading its rows.

    Raises:
        UnreadableRecordError: it is no record file, or cut short.
    """
    return _header(_metadata(path))


def read_record(path: Path, name: str, fingerprint: str) -> tuple[RecordHeader, Rows]:
    """A record's rows, if the file holds exactly what is asked for.

    Raises:
        UnreadableRecordError: it is missing, cut short, damaged, of another format or of something else.
    """
    metadata = _metadata(path)
    header = _header(metadata)
    if (header.name, header.fingerprint) != (name, fingerprint):
        raise UnreadableRecordError("it was written for another model, setting or unit")
    try:
        tensors = load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UnreadableRecordError(str(error)) from None
    if _checksum(header, tensors) != metadata.get("checksum"):
        raise UnreadableRecordError("its checksum is another: it was damaged or changed")
    try:
        rows = [(tensors[f"key.{i}"], tensors[f"value.{i}"]) for i in range(len(tensors) // 2)]
    except KeyError as error:
        raise UnreadableRecordError(f"there is no {error}") from None
    return header, rows


def _tensors(rows: Rows) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for kind, (key, value) in enumerate(rows):
        named[f"key.{kind}"] = key.detach().cpu().contiguous()
        named[f"value.{kind}"] = value.detach().cpu().contiguous()
    return named


def _checksum(header: RecordHeader, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = blake2b(json.dumps([FORMAT, asdict(header)], sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    """The strings in a safetensors file's header. By hand: the library maps the whole file."""
    try:
        with open(path, "rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < num_bytes <= MAX_HEADER_BYTES:
                raise UnreadableRecordError("it does not begin with a header")
            found = json.loads(file.read(num_bytes))["__metadata__"]
    except OSError as error:
        raise UnreadableRecordError(error.strerror or str(error)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableRecordError("its header cannot be read") from None
    return found if isinstance(found, dict) else {}


def _header(metadata: Mapping[str, str]) -> RecordHeader:
    try:
        values: dict[str, Any] = json.loads(metadata["record"])
        header = RecordHeader(**values)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UnreadableRecordError("its header is none of a record") from None
    kinds = (str, str, int, int, int, int, int | float, str)
    if not all(isinstance(v, k) for v, k in zip(asdict(header).values(), kinds, strict=True)):
        raise UnreadableRecordError("its header is none of a record")
    return header


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # states tell the text that they are of


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
