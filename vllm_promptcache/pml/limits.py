"""What a document may be at most (PML page, "Documents")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one document may have at most.

    Bytes (a file named by `src` too), levels of elements, elements, attributes of each, modules and
    scaffolds; placeholders in the room of parameters, which few bytes can ask many of; in each schema units
    that other units see, counted for each that sees them: with `encode="sequence"` that is half the square
    of its modules (`max_seen`), of which a unit that is computed together with a small one before it counts
    one (`max_contexts`); and characters of modules' paths, each of which names all that a module stands in.
    """

    max_document_bytes: int = 4 * 1024 * 1024
    max_depth: int = 64
    max_elements: int = 131_072
    max_attributes: int = 1024
    max_modules: int = 16_384
    max_scaffolds: int = 256
    max_placeholders: int = 1_048_576
    max_contexts: int = 32_768
    max_seen: int = 1_048_576
    max_path_characters: int = 4_194_304


DEFAULT_LIMITS = Limits()
