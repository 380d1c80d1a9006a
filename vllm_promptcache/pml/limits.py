"""What a document may be at most (PML page, "Documents")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes of a document (and of a file named by `src`), and levels of nested elements."""

    max_document_bytes: int = 4 * 1024 * 1024
    max_depth: int = 64
