"""What the workers are told of a request that takes its slots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache import compat
from vllm_promptcache.blocks.slot_layout import edge_rows_from
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.encoding import Encoding
from vllm_promptcache.engine.messages import Admission, Capture
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings


def admission_of(composed: ComposedRequest, store: ModuleStore, recordings: Recordings) -> Admission:
    """A request's slot layout, the edge rows to write into them, and what is kept of what it computes."""
    edge_rows = edge_rows_from(composed.slot_layout, len(composed.found) * composed.slot_layout.block_size)
    if composed.encoding is None:
        return Admission(composed.slot_layout, edge_rows)
    capture = _capture_of(composed, composed.encoding, store, recordings)
    return Admission(composed.slot_layout, edge_rows, capture)


def _capture_of(
    composed: ComposedRequest, encoding: Encoding, store: ModuleStore, recordings: Recordings
) -> Capture:
    units, last = encoding.units, encoding.units[-1]
    # Units before the last one have rows only.
    slots = np.full(sum(len(unit.text.kept) for unit in units), -1)
    if not last.footprint.is_in_place:  # else they are written where they are computed
        own = compat.physical_slots(last.geometry.slots, last.blocks, store.block_size)
        slots[len(slots) - len(own) :] = own
    rows: list[NDArray[np.int64]] = []
    num_rows = 0
    for unit in units:
        rows.append(np.where(unit.geometry.rows >= 0, unit.geometry.rows + num_rows, -1))
        num_rows += unit.geometry.num_rows
    return Capture(
        tuple((unit.key, unit.geometry.num_rows) for unit in units),
        slots,
        np.concatenate(rows),
        last.key.position - last.origin,
        recordings.begin(units, composed.composition.num_cached_tokens),
    )
