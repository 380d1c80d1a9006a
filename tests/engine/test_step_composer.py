"""The step composer alone: what of a batch is composed, in plain arrays. No engine, no model."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_promptcache.blocks.composition import Composition, Computed, Reused
from vllm_promptcache.blocks.geometry import lay_out_unit
from vllm_promptcache.blocks.slot_layout import EdgeRows, SlotLayout, lay_out_slots
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.messages import Admission, Capture
from vllm_promptcache.engine.step import Batch, Step
from vllm_promptcache.engine.step_composer import StepComposer

SIZE = 4
UNIT = UnitKey("unit", 0)


@pytest.fixture
def no_block_is_lost() -> None:
    """There is no engine here."""


def slot_layout(*items: Reused | Computed, length: int = 10, first: int = 0) -> SlotLayout:
    """SlotLayout on one unit of `length` tokens from position `first` on, in blocks of four."""
    geometry = lay_out_unit(np.arange(first, first + length), np.ones(length, bool), SIZE)
    return lay_out_slots(Composition(items), {UNIT: geometry}, SIZE, 1000)


def admission(admitted: SlotLayout, capture: Capture | None = None) -> Admission:
    return Admission(admitted, admitted.edge_rows, capture)


def batch(*requests: tuple[str, int, int]) -> Batch:
    names, computed, scheduled = zip(*requests, strict=True)
    return Batch(names, np.array(computed), np.array(scheduled))


def composed(composer: StepComposer, *requests: tuple[str, int, int]) -> Step:
    step = composer.compose(batch(*requests))
    assert step is not None
    return step


GAP = slot_layout(Reused(UNIT, 0, 10), Computed(50, 3))
MIDDLE = slot_layout(Computed(0, 2), Reused(UNIT, 0, 10), Computed(50, 3), first=20)


def test_plain_batches_are_none_of_its_business() -> None:
    composer = StepComposer()
    assert composer.is_idle and composer.compose(batch(("plain", 0, 5))) is None
    composer.admit({"composed": admission(GAP)})
    composer.compose(batch(("composed", 10, 3)))
    assert not composer.is_idle and composer.compose(batch(("plain", 0, 5))) is None


def test_a_prompts_positions_and_edge_rows() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(GAP)})
    step = composed(composer, ("plain", 7, 2), ("r", 10, 3))
    assert step.tokens.tolist() == [2, 3, 4] and step.positions.tolist() == [50, 51, 52]
    assert step.shifts is None and step.rows is None and not len(step.moved) and not step.needs_python
    assert step.edge_rows is not None and step.late_edge_rows is None
    assert step.edge_rows.ranges == (EdgeRows(UNIT, 0, 2, 0),)
    assert step.edge_rows.slots.requests.tolist() == [1, 1] and step.edge_rows.slots.slots.tolist() == [8, 9]


def test_edge_rows_are_written_once_and_again_after_a_preemption() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(GAP)})
    assert composed(composer, ("r", 10, 2)).edge_rows is not None
    assert composed(composer, ("r", 12, 1)).edge_rows is None
    composer.admit({"r": admission(GAP)})
    assert composed(composer, ("r", 10, 3)).edge_rows is not None


def test_who_is_seated_but_not_in_the_batch_is_served_later() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(GAP), "s": admission(GAP)})
    first, second = composed(composer, ("r", 10, 3)), composed(composer, ("s", 10, 3))
    assert first.edge_rows is not None and second.edge_rows is not None
    composer.admit({"t": admission(GAP)})
    composer.finish(["t", "unknown"])
    assert composer.compose(batch(("plain", 0, 1))) is None


@pytest.mark.parametrize("scheduled", [1, 4])
def test_generated_tokens_are_shifted_with_drafts_or_without(scheduled: int) -> None:
    composer = StepComposer()
    composer.admit({"r": admission(GAP)})
    composed(composer, ("r", 10, 3))
    step = composed(composer, ("plain", 3, 1), ("r", 13, scheduled))
    assert step.shifts is not None and step.shifts.tolist() == [0, 40]
    assert composer.position_shift("r") == 40 and composer.position_shift("plain") == 0
    assert not len(step.tokens) and not step.needs_python


def test_generated_tokens_without_gaps_are_ordinary() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(slot_layout(Reused(UNIT, 0, 10), Computed(10, 3)))})
    composed(composer, ("r", 10, 3))
    assert composer.compose(batch(("r", 13, 1))) is None


def test_a_chunk_across_the_prompts_end_after_a_preemption() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(GAP)})
    assert composed(composer, ("r", 11, 5)).positions.tolist() == [51, 52, 53, 54, 55]


def test_edge_rows_of_a_request_that_comes_back_past_its_prompt() -> None:
    """What it had computed was found in the cache, but for rows that stand before a part of it."""
    composer = StepComposer()
    composer.admit({"r": admission(GAP)})
    assert composed(composer, ("r", 13, 1)).edge_rows is not None


def test_a_run_in_the_middle_is_a_row_with_slots_of_its_own() -> None:
    composer = StepComposer()
    composer.admit({"r": admission(MIDDLE)})
    step = composed(composer, ("plain", 3, 1), ("r", 10, 5))
    assert step.needs_python and step.rows is not None
    assert step.rows.requests.tolist() == [0, 1, 1]
    assert step.rows.query_lens.tolist() == [1, 2, 3] and step.rows.seq_lens.tolist() == [4, 2, 15]
    assert step.rows.shared_blocks.tolist() == [0, 0, 2] and step.rows.all_shared_blocks.tolist() == [0, 2, 2]
    assert step.moved.tolist() == [1, 2]
    assert step.moved_slots.requests.tolist() == [1, 1] and step.moved_slots.slots.tolist() == [8, 9]
    last = composed(composer, ("r", 12, 3))
    assert last.rows is None and not len(last.moved)


def test_captures_take_their_part_of_a_chunk_and_rows_of_theirs_come_late() -> None:
    encoder = slot_layout(Computed(0, 6))
    capture = Capture(((UNIT, 4),), np.array([40, 41, 42, 43, -1, -1]), np.array([-1, -1, 0, 1, 2, 3]))
    composer = StepComposer()
    composer.admit({"encoder": admission(encoder, capture)})
    first = composed(composer, ("encoder", 0, 3))
    (captured,) = first.captures
    assert captured.stored.tolist() == [0, 1, 2] and captured.slots.tolist() == [40, 41, 42]
    assert captured.kept.tolist() == [2] and captured.rows.tolist() == [0]
    composer.admit({"r": admission(GAP)})
    second = composed(composer, ("encoder", 3, 3), ("r", 10, 3))
    assert second.needs_python and second.edge_rows is None and second.late_edge_rows is not None
    (captured,) = second.captures
    assert captured.stored.tolist() == [0] and captured.kept.tolist() == [0, 1, 2]
    assert captured.rows.tolist() == [1, 2, 3]
