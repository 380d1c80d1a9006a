"""What the scheduler tells the workers beside vLLM's own scheduler output."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.slot_layout import EdgeRows, SlotLayout
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.records.catalog import Orders


@dataclass(frozen=True, eq=False)
class Recording:
    """Keep what a request computes as records as well.

    ``records`` are their names, each with how many rows it has. ``rows`` (int64, ``(new tokens,)``) says at
    which row, counted through all of them; -1 for none.
    """

    records: tuple[tuple[str, int], ...]
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Capture:
    """Keep what a request computes as units' stored states.

    ``units`` are their keys, each with how many edge rows it has. ``slots`` and ``rows`` (int64,
    ``(new tokens,)``) say for each new token of the request into which slot of the KV cache its key and
    value go as well, and at which edge row they are kept, counted through all units; -1 for neither. The
    units stand ``shift`` positions further on than they are computed: there their states are moved on their
    way, in a ``recording`` they are not.
    """

    units: tuple[tuple[UnitKey, int], ...]
    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    shift: int = 0
    recording: Recording | None = None


@dataclass(frozen=True, eq=False)
class Load:
    """Make a unit's stored states from a record.

    ``slots`` and ``rows`` (int64, ``(record rows,)``) are as in ``Capture``. ``positions`` are those at which
    the record's rows stand, and ``shift`` how much further on the unit does.
    """

    unit: UnitKey
    record: str
    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_rows: int
    positions: NDArray[np.int64]
    shift: int


@dataclass(frozen=True, eq=False)
class Admission:
    """A composed request takes its slots, at first or again after a preemption.

    ``edge_rows`` are those to write: blocks found in the cache hold theirs already.
    """

    slot_layout: SlotLayout
    edge_rows: tuple[EdgeRows, ...]
    capture: Capture | None = None


@dataclass(frozen=True)
class StepMessage:
    """Sent with a step: requests admitted in it, units whose edge rows nobody will ask for again,
    units to load before it, and what becomes of records."""

    admissions: dict[str, Admission] = field(default_factory=dict)
    dropped: tuple[UnitKey, ...] = ()
    loads: tuple[Load, ...] = ()
    orders: Orders | None = None

    def __bool__(self) -> bool:
        return bool(self.admissions or self.dropped or self.loads or self.orders)
