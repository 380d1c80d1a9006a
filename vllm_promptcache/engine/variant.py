"""Keys of units in the engine: a digest and a variant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

from vllm_promptcache.blocks.composition import UnitKey
from vllm_promptcache.blocks.heads import COPY


class Variant(NamedTuple):
    """What separates states of the same text. Part of every key, so it must be quick to hash.

    Attributes:
        adapter: the LoRA adapter's name and path, as in vLLM's prefix cache; None for none.
        tenant: the request's ``cache_salt``.
        head_end: 0 for a whole unit; else the token index at which its head ends, or ``COPY`` for its copy
            (``blocks.heads``).
    """

    adapter: tuple[str, str] | None = None
    tenant: str | None = None
    head_end: int = 0


def head_key(key: UnitKey, end: int) -> UnitKey:
    """The key of a unit's head that ends at token ``end``, or of its copy."""
    digest, variant = cast(tuple[str, Variant], key)
    return digest, variant._replace(head_end=end)


def is_head(key: UnitKey) -> bool:
    """Whether a key is a head's or a copy's, not a whole unit's."""
    return cast(tuple[str, Variant], key)[1].head_end != 0


def is_copy(key: UnitKey) -> bool:
    """Whether a key is a copy's."""
    return cast(tuple[str, Variant], key)[1].head_end == COPY


def whole_units(keys: Iterable[UnitKey]) -> set[UnitKey]:
    """The units that keys are of, whole or as copies; a head counts with what is behind it."""
    return {head_key(key, 0) if is_copy(key) else key for key in keys if is_copy(key) or not is_head(key)}
