"""What the workers are told of a request that takes its seats."""

from __future__ import annotations

import numpy as np

from vllm_promptcache import compat
from vllm_promptcache.blocks.seats import edge_rows_from
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.messages import Capture, Seating
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings


def seating_of(composed: ComposedRequest, store: ModuleStore, recordings: Recordings) -> Seating:
    """A request's seats, the edge rows to write into them, and what is kept of what it computes."""
    edge_rows = edge_rows_from(composed.seats, len(composed.found) * composed.seats.block_size)
    if composed.encoding is None:
        return Seating(composed.seats, edge_rows)
    unit = composed.encoding.unit
    slots = compat.physical_slots(unit.geometry.slots, unit.blocks, store.block_size)
    if unit.footprint.is_in_place:  # written where they are computed
        slots = np.full_like(slots, -1)
    capture = Capture(
        unit.key,
        slots,
        unit.geometry.rows,
        unit.geometry.num_rows,
        unit.key.position - unit.origin,
        recordings.begin(unit, composed.composition.num_cached_tokens),
    )
    return Seating(composed.seats, edge_rows, capture)
