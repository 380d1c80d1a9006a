"""What of a step is composed: from the slots that requests took, and the batch they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_promptcache.blocks.rows import Chunk, Rows, moved_tokens, positions_of, split_rows
from vllm_promptcache.blocks.slot_layout import EdgeRows, SlotLayout
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.messages import Admission, Capture
from vllm_promptcache.engine.step import NO_TOKENS, Batch, Capturing, Injection, Step, TableSlots

NO_SLOTS = TableSlots(NO_TOKENS, NO_TOKENS)


class StepComposer:
    """Keeps the slot layouts of a runner's requests, and works out steps from them.

    vLLM computes a token's position and its slot from the same index, its place among the request's
    tokens. For composed requests the index gives the slot; the position comes from its slot layout.

    Each step, in this order: `finish`, `admit`, `compose`. A request that was preempted stays admitted,
    and is admitted anew when it comes back; its edge rows are then written again.
    """

    def __init__(self) -> None:
        self._admitted: dict[str, Admission] = {}
        self._newly_admitted: list[str] = []

    @property
    def is_idle(self) -> bool:
        """Whether no composed request is there."""
        return not self._admitted

    def finish(self, request_ids: Iterable[str]) -> None:
        """Requests are over."""
        for request_id in request_ids:
            if self._admitted.pop(request_id, None) is not None and request_id in self._newly_admitted:
                self._newly_admitted.remove(request_id)

    def admit(self, admissions: Mapping[str, Admission]) -> None:
        """Requests take their slots. They are in the batch of this step or a later one."""
        self._admitted.update(admissions)
        self._newly_admitted += [r for r in admissions if r not in self._newly_admitted]

    def position_shift(self, request_id: str) -> int:
        """What to add to the index of a request's generated tokens to have their positions."""
        admission = self._admitted.get(request_id)
        return 0 if admission is None else admission.slot_layout.position_shift

    def compose(self, batch: Batch) -> Step | None:
        """What of a step is composed; None if nothing is. Notes that edge rows are written."""
        chunks: dict[int, Chunk] = {}
        shifts: NDArray[np.int64] | None = None
        for index, request_id in enumerate(batch.request_ids):
            admission = self._admitted.get(request_id)
            if admission is None:
                continue
            computed, slot_layout = int(batch.computed[index]), admission.slot_layout
            if computed < slot_layout.num_prompt_tokens:
                chunks[index] = Chunk(computed, int(batch.scheduled[index]), slot_layout)
            elif slot_layout.position_shift:  # without gaps a token's index is its position
                if shifts is None:
                    shifts = np.zeros(len(batch.request_ids), np.int64)
                shifts[index] = slot_layout.position_shift
        if not chunks:
            if shifts is None and not self._newly_admitted:
                return None
            edge_rows = self._take_edge_rows(batch, frozenset())[0]
            return Step(NO_TOKENS, NO_TOKENS, shifts, NO_TOKENS, NO_SLOTS, None, (), edge_rows, None)
        tokens, positions = _positions(batch, chunks)
        rows = _rows(batch, chunks)
        moved, moved_slots = (NO_TOKENS, NO_SLOTS) if rows is None else _moved(batch, chunks)
        captures = self._captures(batch, chunks)
        edge_rows, late = self._take_edge_rows(batch, frozenset(unit for c in captures for unit in c.units))
        return Step(tokens, positions, shifts, moved, moved_slots, rows, captures, edge_rows, late)

    def _captures(self, batch: Batch, chunks: Mapping[int, Chunk]) -> tuple[Capturing, ...]:
        captures: list[Capturing] = []
        for index, chunk in chunks.items():
            capture = self._admitted[batch.request_ids[index]].capture
            if capture is None or chunk.slot_layout is None:
                continue
            captures.append(_capturing(capture, chunk, chunk.slot_layout, int(batch.starts[index])))
        return tuple(captures)

    def _take_edge_rows(
        self, batch: Batch, captured: frozenset[UnitKey]
    ) -> tuple[Injection | None, Injection | None]:
        """The edge rows of requests of the batch that took their slots: those to write at once, and those of
        units that this step captures, to write as they come."""
        if not self._newly_admitted:
            return None, None
        indices = {request_id: index for index, request_id in enumerate(batch.request_ids)}
        admitted = [r for r in self._newly_admitted if r in indices]
        self._newly_admitted = [r for r in self._newly_admitted if r not in indices]
        edges = [(indices[r], self._admitted[r], self._admitted[r].edge_rows) for r in admitted]
        if not captured:
            return _injection(edges), None
        now = [(i, s, tuple(e for e in rows if e.unit not in captured)) for i, s, rows in edges]
        late = [(i, s, tuple(e for e in rows if e.unit in captured)) for i, s, rows in edges]
        return _injection(now), _injection(late)


def _capturing(capture: Capture, chunk: Chunk, slot_layout: SlotLayout, start: int) -> Capturing:
    """What a chunk that begins at token ``start`` of the step computes of units."""
    first = chunk.computed - slot_layout.num_cached_tokens
    part = slice(first, first + chunk.scheduled)
    slots, rows, positions = capture.slots[part], capture.rows[part], slot_layout.positions[part]
    stored, kept = np.flatnonzero(slots >= 0), np.flatnonzero(rows >= 0)
    record, record_rows = None, NO_TOKENS
    if capture.recording is not None:
        record, record_rows = capture.recording.records[0][0], capture.recording.rows[part]
    recorded = np.flatnonzero(record_rows >= 0)
    return Capturing(
        units=tuple(unit for unit, _ in capture.units),
        stored=stored + start,
        slots=slots[stored],
        kept=kept + start,
        rows=rows[kept],
        shift=capture.shift,
        stored_at=positions[stored],
        kept_at=positions[kept],
        record=record,
        recorded=recorded + start,
        record_rows=record_rows[recorded],
    )


def _injection(edges: Sequence[tuple[int, Admission, tuple[EdgeRows, ...]]]) -> Injection | None:
    """Edge rows by request, with their slots in the request's private blocks."""
    ranges: list[EdgeRows] = []
    requests: list[NDArray[np.int64]] = []
    slots: list[NDArray[np.int64]] = []
    for index, admission, rows in edges:
        if rows:
            offsets = np.concatenate([np.arange(e.offset, e.offset + e.end - e.start) for e in rows])
            ranges += rows
            requests.append(np.full(len(offsets), index, np.int64))
            slots.append(admission.slot_layout.num_shared_blocks * admission.slot_layout.block_size + offsets)
    if not ranges:
        return None
    return Injection(tuple(ranges), TableSlots(np.concatenate(requests), np.concatenate(slots)))


def _positions(batch: Batch, chunks: Mapping[int, Chunk]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of prompts, and their positions."""
    tokens = [np.arange(batch.starts[index], batch.starts[index + 1]) for index in chunks]
    positions = [positions_of(chunk) for chunk in chunks.values()]
    return np.concatenate(tokens), np.concatenate(positions)


def _rows(batch: Batch, chunks: Mapping[int, Chunk]) -> Rows | None:
    if not any(chunk.has_middle_rows for chunk in chunks.values()):
        return None
    sizes = zip(batch.computed, batch.scheduled, strict=True)
    return split_rows(
        [
            chunks.get(i) or Chunk(int(computed), int(scheduled), None)
            for i, (computed, scheduled) in enumerate(sizes)
        ]
    )


def _moved(batch: Batch, chunks: Mapping[int, Chunk]) -> tuple[NDArray[np.int64], TableSlots]:
    """Tokens whose slot is not that of their index, and their slots."""
    tokens: list[NDArray[np.int64]] = []
    requests: list[NDArray[np.int64]] = []
    slots: list[NDArray[np.int64]] = []
    for index, chunk in chunks.items():
        moved, logical = moved_tokens(chunk)
        tokens.append(moved + batch.starts[index])
        requests.append(np.full(len(moved), index, np.int64))
        slots.append(logical)
    return np.concatenate(tokens), TableSlots(np.concatenate(requests), np.concatenate(slots))
