"""LoRA adapters by what their weights are, not by their number or their path alone."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from vllm.lora.request import LoRARequest

Adapter = tuple[str, ...]


class Adapters:
    """What tells adapters apart: name, path, and the files as they were when they were last loaded.

    An adapter whose weights were replaced at the same path keeps the states of the old ones until it is
    loaded again, as the workers do.
    """

    def __init__(self) -> None:
        self._files: dict[int, tuple[str, str]] = {}

    def loaded(self, lora: LoRARequest) -> None:
        """The workers have just loaded an adapter, perhaps in place of another."""
        self._files[lora.lora_int_id] = (lora.lora_path, _state_of(lora.lora_path))

    def of(self, lora: LoRARequest | None) -> Adapter | None:
        """What tells a request's adapter from others; None for none. An adapter is loaded when it is first
        asked for, and again with each request that says so."""
        if lora is None:
            return None
        path, files = self._files.get(lora.lora_int_id, (None, ""))
        if path != lora.lora_path or lora.load_inplace:
            self.loaded(lora)
            _, files = self._files[lora.lora_int_id]
        return (lora.lora_name, lora.lora_path, files)


def _state_of(path: str) -> str:
    """Sizes and times of an adapter's files; of one that is not in a folder here, nothing."""
    folder = Path(path)
    if not folder.is_dir():
        return ""
    digest = blake2b(digest_size=16)
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
