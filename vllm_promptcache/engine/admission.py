"""What the workers are told of a request that takes its slots."""

from __future__ import annotations

import numpy as np

from vllm_promptcache import compat
from vllm_promptcache.blocks.slot_layout import edge_rows_from
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.messages import Admission, Capture
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings


def admission_of(composed: ComposedRequest, store: ModuleStore, recordings: Recordings) -> Admission:
    """A request's slot layout, the edge rows to write into them, and what is kept of what it computes."""
    edge_rows = edge_rows_from(composed.slot_layout, len(composed.found) * composed.slot_layout.block_size)
    if composed.encoding is None:
        return Admission(composed.slot_layout, edge_rows)
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
    return Admission(composed.slot_layout, edge_rows, capture)
