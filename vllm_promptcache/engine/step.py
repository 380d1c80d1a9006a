"""One step of a model runner: what is in its batch, and what of that is composed. Plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.rows import Rows
from vllm_promptcache.blocks.slot_layout import EdgeRows
from vllm_promptcache.blocks.unit_key import UnitKey

NO_TOKENS = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """The requests of a step in the order in which their tokens stand.

    ``computed`` and ``scheduled`` (integers, ``(requests,)``) are each request's tokens before the step and
    in it. Where drafts are verified asynchronously, ``computed`` is an upper bound for requests that are past
    their prompt, and exact for the others.
    """

    request_ids: Sequence[str]
    computed: NDArray[np.integer]
    scheduled: NDArray[np.integer]

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Where each request's tokens begin, and the last one's end; int64, ``(requests + 1,)``."""
        return np.concatenate(([0], np.cumsum(self.scheduled, dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class TableSlots:
    """Slots by their place in requests' block tables; both int64 of one length.

    ``requests`` are indices in the batch, ``slots`` offsets in slots within the request's table.
    """

    requests: NDArray[np.int64]
    slots: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Injection:
    """Ranges of edge rows, one after the other, and the slots they go to."""

    ranges: tuple[EdgeRows, ...]
    slots: TableSlots


@dataclass(frozen=True, eq=False)
class Capturing:
    """One encoding request's part of a step's tokens.

    ``stored`` indexes tokens of the step that go into the units' blocks at ``slots`` of the KV cache;
    ``kept`` those that are kept as edge ``rows``, counted through all ``units``. All int64. Those two are
    moved by ``shift`` from the positions ``stored_at`` and ``kept_at``. ``recorded`` are kept unmoved, as
    ``record_rows``, counted from the first row of ``record`` on.
    """

    units: tuple[UnitKey, ...]
    stored: NDArray[np.int64]
    slots: NDArray[np.int64]
    kept: NDArray[np.int64]
    rows: NDArray[np.int64]
    shift: int
    stored_at: NDArray[np.int64]
    kept_at: NDArray[np.int64]
    record: str | None
    recorded: NDArray[np.int64]
    record_rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Step:
    """What a step does that vLLM would not do by itself.

    A token's position is that of its index among its request's tokens, but for three kinds of tokens:

    Attributes:
        tokens, positions: tokens of the step (int64) and their positions: those of prompts.
        shifts: by request of the batch (int64), what is added to the index of each of its tokens: of
            requests that are past their prompt; None where all are 0. `tokens` are not shifted.
        moved, moved_slots: tokens (int64) whose slot is not that of their index, and their slots.
        rows: the rows to present to the attention backend, None where each request is one.
        captures: units of which this step computes tokens.
        edge_rows: edge rows to write before the step; None if there are none.
        late_edge_rows: edge rows of units that this step captures, to be written layer by layer.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    shifts: NDArray[np.int64] | None
    moved: NDArray[np.int64]
    moved_slots: TableSlots
    rows: Rows | None
    captures: tuple[Capturing, ...]
    edge_rows: Injection | None
    late_edge_rows: Injection | None

    @property
    def needs_python(self) -> bool:
        """Whether the forward pass must not be a full CUDA graph: those replay without calling Python."""
        return bool(self.captures) or self.rows is not None
