"""A unit: the smallest thing that is encoded and reused (PML page, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Unit:
    """A module's own text, the schema's anonymous text, or a scaffold's co-encoded modules.

    ``token_ids`` and ``position_ids`` are int64 arrays and ``kept`` a bool array, all of shape
    ``(tokens,)``, in position order; ``kept`` is false for placeholders, which are seen while the unit
    is encoded and never reused. ``context`` holds the units whose kept tokens a token of this unit also
    sees, as far as they stand before it by position. ``breaks`` are indices of tokens between which and
    the token before a prompt may cut, though positions do not jump there: in a scaffold, where the text
    begins or ends of a module that need not be included.
    """

    id: str
    token_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    kept: NDArray[np.bool_]
    context: tuple[Unit, ...]
    breaks: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens to encode, placeholders included."""
        return len(self.token_ids)

    @cached_property
    def token_list(self) -> list[int]:
        """The token IDs as vLLM takes them; not to be changed."""
        return list(self.token_ids.tolist())

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over everything in the plan that the unit's states depend on.

        The model, its revision and data types, LoRA and tenant are the engine's to add.
        """
        context = [unit.digest for unit in self.context]
        return digest_of(self.token_ids, self.position_ids, self.kept, context, self.breaks)


def token_after_kept(kept: NDArray[np.bool_], num_tokens: int) -> int:
    """The index of the token after the first ``num_tokens`` kept ones of a unit; after all if it has fewer.

    ``kept`` has shape ``(tokens,)``.
    """
    if num_tokens <= len(kept) and kept[:num_tokens].all():
        return num_tokens
    indices = np.flatnonzero(kept)
    return int(indices[num_tokens - 1]) + 1 if num_tokens <= len(indices) else len(kept)


def digest_of(
    token_ids: NDArray[np.int64],
    position_ids: NDArray[np.int64],
    kept: NDArray[np.bool_],
    context: Iterable[str],
    breaks: Iterable[int] = (),
) -> str:
    """The digest of a unit with these ``(tokens,)`` arrays in the context of units with these digests."""
    h = sha256()
    for array, dtype in ((token_ids, np.int64), (position_ids, np.int64), (kept, np.bool_)):
        data = np.ascontiguousarray(array, dtype).tobytes()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    for digest in context:
        h.update(bytes.fromhex(digest))
    for token in breaks:
        h.update(token.to_bytes(8, "little"))
    return h.hexdigest()
