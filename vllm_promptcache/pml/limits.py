"""What a document may be at most (PML page, "Documents")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one document may have at most: bytes (a file named by `src` too), levels of elements, elements,
    modules and scaffolds. What a schema costs to load grows with modules times scaffolds."""

    max_document_bytes: int = 4 * 1024 * 1024
    max_depth: int = 64
    max_elements: int = 131_072
    max_modules: int = 16_384
    max_scaffolds: int = 256
