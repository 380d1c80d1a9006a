"""Names: what a record is called, and all that its states depend on beside the unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.records.record_file import FORMAT

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def record_name(key: UnitKey) -> str:
    """What the record of a unit is called, wherever it stands: its text, adapter and tenant, as a digest.

    A tenant's salt cannot be read from it.
    """
    said = json.dumps([key.digest, key.adapter, key.tenant, key.part])
    return blake2b(said.encode(), digest_size=24).hexdigest()


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A digest of everything that the states of any unit depend on; ``facts`` are plain types."""
    said = json.dumps({"format": FORMAT, **facts}, sort_keys=True, default=str)
    return blake2b(said.encode(), digest_size=16).hexdigest()


def digest_of_weights(folder: Path, known: dict[str, str] | None = None) -> str:
    """A digest of the weights in a folder.

    ``known`` has digests of files that were read before, by their path, size and time of change; it gains
    those that are read now. A file of a hub's cache that is named by its digest is not read.
    """
    known = {} if known is None else known
    digest = blake2b(digest_size=16)
    for path in sorted({p for pattern in WEIGHTS for p in folder.glob(pattern)}):
        digest.update(f"{path.name}={_digest_of_file(path.resolve(), known)};".encode())
    return digest.hexdigest()


def _digest_of_file(path: Path, known: dict[str, str]) -> str:
    if path.parent.name == "blobs" and len(path.name) == 64:
        return path.name
    seen = path.stat()
    key = f"{path}:{seen.st_size}:{seen.st_mtime_ns}:{seen.st_ino}"
    if key not in known:
        with open(path, "rb") as file:
            known[key] = file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
    return known[key]
