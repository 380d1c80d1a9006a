"""What the scheduler tells the workers beside vLLM's own scheduler output."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.seats import EdgeRows, Seats
from vllm_promptcache.blocks.unit_key import UnitKey


@dataclass(frozen=True, eq=False)
class Capture:
    """Keep what a request computes as a unit's stored states.

    ``slots`` and ``rows`` (int64, ``(new tokens,)``) say for each new token of the request into which
    slot of the KV cache its key and value go as well, and at which of the unit's ``num_rows`` edge rows
    they are kept; -1 for neither.
    """

    unit: UnitKey
    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_rows: int


@dataclass(frozen=True, eq=False)
class Seating:
    """A composed request takes its seats, at first or again after a preemption.

    ``edge_rows`` are those to write: blocks found in the cache hold theirs already.
    """

    seats: Seats
    edge_rows: tuple[EdgeRows, ...]
    capture: Capture | None = None


@dataclass(frozen=True)
class StepMessage:
    """Sent with a step: requests seated in it, and units whose edge rows nobody will ask for again."""

    seatings: dict[str, Seating] = field(default_factory=dict)
    dropped: tuple[UnitKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.seatings or self.dropped)
