"""A unit: the smallest thing that is encoded and reused (PML page, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Placement(NamedTuple):
    """A unit, by its digest, at the position of its first token."""

    digest: str
    position: int


@dataclass(frozen=True, eq=False)
class Unit:
    """A module's own text, the schema's anonymous text, or a scaffold's co-encoded modules.

    ``token_ids`` and ``position_ids`` are int64 arrays and ``kept`` a bool array, all of shape
    ``(tokens,)``, in position order; ``kept`` is false for placeholders, which are seen while the unit
    is encoded and never reused. ``context`` holds the units whose kept tokens a token of this unit also
    sees, as far as they stand before it by position. ``breaks`` are indices of tokens between which and
    the token before a prompt may cut, though positions do not jump there: in a scaffold, where the text
    begins or ends of a module that need not be included.

    ``position_ids`` are those at the unit's *home*, where its context really stands. Elsewhere its states
    are those that it would have if it and its context stood there.
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
    def home(self) -> int:
        """The position of the first token where the unit's context really stands."""
        return int(self.position_ids[0]) if len(self.position_ids) else 0

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over everything in the plan that the unit's states depend on, but for where it stands.

        The position, the model, its revision and data types, LoRA and tenant are the engine's to add.
        """
        context = [(unit.digest, unit.home - self.home) for unit in self.context]
        return digest_of(self.token_ids, self.position_ids, self.kept, context, self.breaks)

    @property
    def placement(self) -> Placement:
        """The unit at home."""
        return Placement(self.digest, self.home)


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
    context: Iterable[tuple[str, int]],
    breaks: Iterable[int] = (),
) -> str:
    """The digest of a unit with these ``(tokens,)`` arrays, wherever it stands.

    ``context`` has of each context unit the digest and the *offset*: the position of its first token,
    counted from the unit's first position.
    """
    h = sha256()
    relative = position_ids - position_ids[:1]
    for array, dtype in ((token_ids, np.int64), (relative, np.int64), (kept, np.bool_)):
        data = np.ascontiguousarray(array, dtype).tobytes()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    for digest, offset in context:
        h.update(bytes.fromhex(digest))
        h.update(offset.to_bytes(8, "little", signed=True))
    for token in breaks:
        h.update(token.to_bytes(8, "little"))
    return h.hexdigest()
