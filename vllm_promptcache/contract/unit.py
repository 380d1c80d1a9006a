"""A unit: the smallest thing that is encoded and reused (PML page, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.contract.once import once

# Fewer tokens fill no block of a KV cache: none is smaller in vLLM's attention backends.
SMALL_TOKENS = 16


class Placement(NamedTuple):
    """A unit, by its digest, at the position of its first token."""

    digest: str
    position: int


class _UnitSlots:
    """Where a unit keeps what is worked out once."""

    __slots__ = ("_digest", "_home", "_seen", "_stem", "_token_list")


@dataclass(frozen=True, eq=False, slots=True)
class Unit(_UnitSlots):
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

    @once
    def token_list(self) -> list[int]:
        """The token IDs as vLLM takes them; not to be changed."""
        return list(self.token_ids.tolist())

    @once
    def home(self) -> int:
        """The position of the first token where the unit's context really stands."""
        return int(self.position_ids[0]) if len(self.position_ids) else 0

    @once
    def stem(self) -> Unit | None:
        """The last unit of the context with whose own context, and itself, the context begins; None if there
        is none. Where units see all before them, it is the one before, and says all that they see."""
        for index in range(len(self.context) - 1, -1, -1):
            seen = self.context[index]
            if len(seen.context) == index and self.context[:index] == seen.context:
                return seen
        return None

    @once
    def seen(self) -> tuple[Unit, ...]:
        """The context in short: the stem, if there is one, for what it has seen as well, and the rest."""
        if self.stem is None:
            return self.context
        return (self.stem, *self.context[len(self.stem.context) + 1 :])

    @property
    def joins(self) -> bool:
        """Whether the unit and its stem are one causal pass over the tokens of both, and the stem fills no
        block of any backend, so that they are computed together."""
        stem = self.stem
        return (
            stem is not None
            and len(self.context) == len(stem.context) + 1
            and stem.num_tokens < SMALL_TOKENS
            and bool(stem.kept.all())
            and bool(stem.position_ids[-1] < self.position_ids[0])
        )

    @once
    def digest(self) -> str:
        """Hex SHA-256 over everything in the plan that the unit's states depend on, but for where it stands.

        The position, the model, its revision and data types, LoRA and tenant are the engine's to add.
        """
        for unit in reversed(self._stems()):
            _ = unit.digest  # of few calls each, however many see each other
        seen = [(unit.digest, unit.home - self.home) for unit in self.seen]
        has_stem = self.stem is not None
        return digest_of(self.token_ids, self.position_ids, self.kept, seen, self.breaks, has_stem)

    def _stems(self) -> list[Unit]:
        """The unit's stem, that one's, and so on, as far as no digest is known."""
        stems: list[Unit] = []
        stem = self.stem
        while stem is not None and not hasattr(stem, "_digest"):
            stems.append(stem)
            stem = stem.stem
        return stems

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
    has_stem: bool = False,
) -> str:
    """The digest of a unit with these ``(tokens,)`` arrays, wherever it stands.

    ``context`` has of each context unit the digest and the *offset*: the position of its first token,
    counted from the unit's first position. With ``has_stem`` the first stands for all that it has seen too.
    """
    h = sha256()
    relative = position_ids - position_ids[:1]
    for array, dtype in ((token_ids, np.int64), (relative, np.int64), (kept, np.bool_)):
        data = np.ascontiguousarray(array, dtype).tobytes()
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    if has_stem:
        h.update(b"stem")
    for digest, offset in context:
        h.update(bytes.fromhex(digest))
        h.update(offset.to_bytes(8, "little", signed=True))
    for token in breaks:
        h.update(token.to_bytes(8, "little"))
    return h.hexdigest()
