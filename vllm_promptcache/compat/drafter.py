"""Drafters of both model runners: where they count, and which layers are theirs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any, Protocol

from vllm_promptcache.compat.shims import expect
from vllm_promptcache.compat.worker import no_full_graphs_by


def drafter_layers(runner: Any) -> frozenset[str]:
    """The names of the layers that a model runner's drafter has of its own, by either generation's runner.

    Target: SpecDecodeBaseProposer._draft_attn_layer_names and DraftModelSpeculator.draft_attn_layer_names.
    Why: they share the model's KV cache groups, and nothing else tells them apart.
    """
    names = getattr(getattr(runner, "drafter", None), "_draft_attn_layer_names", None)
    if names is None:
        names = getattr(getattr(runner, "speculator", None), "draft_attn_layer_names", None)
    return frozenset(names or ())


def can_see_through(drafter: Any) -> bool:
    """Whether a drafter sets its inputs as vLLM's EAGLE, MTP and draft models do."""
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    return (
        isinstance(drafter, SpecDecodeBaseProposer)
        and type(drafter).set_inputs_first_pass is SpecDecodeBaseProposer.set_inputs_first_pass
        and not drafter.uses_mrope
    )


def see_through_drafter(
    drafter: Any, first_pass: Callable[..., Any], next_pass: Callable[..., Any], end: Callable[[], None]
) -> None:
    """Have a drafter set its inputs by ``first_pass(original, target_positions, others)``, and find what
    follows by ``next_pass(original, positions, *others)``; then ``end()``.

    Target: SpecDecodeBaseProposer.propose, set_inputs_first_pass and _update_positions_dependent_metadata, of
    one instance. Why: both take a token's position for its index among its request's tokens. Unnecessary once
    drafters compute slots from indices.
    """
    propose = drafter.propose
    set_inputs, update = drafter.set_inputs_first_pass, drafter._update_positions_dependent_metadata
    expect(set_inputs, "target_positions", "cad")
    expect(update, "positions", "common_attn_metadata")

    def set_inputs_first_pass(*, target_positions: Any, **inputs: Any) -> Any:
        return first_pass(set_inputs, target_positions, inputs)

    def _update_positions_dependent_metadata(positions: Any, *others: Any) -> Any:
        return next_pass(update, positions, *others)

    def propose_and_end(*args: Any, **kwargs: Any) -> Any:
        try:
            return propose(*args, **kwargs)
        finally:
            end()

    drafter.propose = propose_and_end
    drafter.set_inputs_first_pass = set_inputs_first_pass
    drafter._update_positions_dependent_metadata = _update_positions_dependent_metadata


class SpeculatorView(Protocol):
    """What a drafter of V2's model runner is seen through with."""

    @property
    def needs_python(self) -> bool:
        """Whether the first pass must not be a full CUDA graph."""

    def begin_first_pass(self, input_batch: Any) -> None:
        """A pass over the tokens of ``input_batch`` comes, and then `positions` of it are asked for."""

    def begin_next_passes(self, input_batch: Any) -> None:
        """Passes over one token of each request come."""

    def correct_slots(self, slots: Any) -> None:
        """In place, those of a first pass's tokens that were found by their indices."""

    def positions(self, indices: Any) -> Any:
        """The positions of a pass's tokens, int64, ``(tokens,)``, always in the same memory."""

    def end(self) -> None:
        """Drafts are made."""


def can_see_through_speculator(speculator: Any) -> bool:
    """Whether a drafter of V2's runner makes its passes as vLLM's EAGLE, MTP and draft models do."""
    from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import TargetDependentARSpeculator

    if isinstance(speculator, StandaloneARSpeculator):
        return True
    # Others keep to the position of the last token: their layers read the model's own states.
    return isinstance(speculator, TargetDependentARSpeculator) and speculator.advance_draft_positions


def see_through_speculator(speculator: Any, view: SpeculatorView) -> None:
    """Have a drafter of V2's runner take positions from a ``view``, which is told of its passes.

    Target: propose, _run_model, and on_prefill_begin and on_multi_step_decode_begin of
    TargetDependentARSpeculator, _prefill, _multi_step_decode and _build_attn_metadata of
    StandaloneARSpeculator, of one instance. Why: both take a token's index for its position. Unnecessary once
    drafters compute slots from indices.
    """
    batches: list[Any] = []
    if hasattr(speculator, "on_prefill_begin"):
        _see_through_dependent(speculator, view, batches)
    else:
        _see_through_standalone(speculator, view, batches)
    propose = speculator.propose
    expect(propose, "input_batch", "attn_metadata", "slot_mappings")

    def propose_seen_through(input_batch: Any, *args: Any, dummy_run: bool = False, **kwargs: Any) -> Any:
        graphs = getattr(speculator, "prefill_cudagraph_manager", None)
        with contextlib.ExitStack() as stack:
            stack.callback(view.end)
            stack.callback(batches.clear)
            if not dummy_run:
                batches.append(input_batch)
            if view.needs_python and graphs is not None:
                stack.enter_context(no_full_graphs_by(graphs, speculator.vllm_config.compilation_config))
            return propose(input_batch, *args, dummy_run=dummy_run, **kwargs)

    speculator.propose = propose_seen_through


def _see_through_dependent(speculator: Any, view: SpeculatorView, batches: list[Any]) -> None:
    """The first pass has the attention metadata and the slots of the model's step."""
    begin_prefill, begin_decode = speculator.on_prefill_begin, speculator.on_multi_step_decode_begin
    run_model = speculator._run_model
    expect(run_model, "num_tokens", "attn_metadata", "slot_mappings")

    def on_prefill_begin(num_reqs: int) -> None:
        if batches:
            view.begin_first_pass(batches[0])
        begin_prefill(num_reqs)

    def on_multi_step_decode_begin(num_reqs: int) -> None:
        if batches:
            view.begin_next_passes(batches[0])
        begin_decode(num_reqs)

    def _run_model(num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        buffers = speculator.input_buffers
        speculator.input_buffers = seen = copy.copy(buffers)
        seen.positions = view.positions(buffers.positions[:num_tokens])
        try:
            return run_model(num_tokens, *args, **kwargs)
        finally:
            speculator.input_buffers = buffers

    speculator.on_prefill_begin = on_prefill_begin
    speculator.on_multi_step_decode_begin = on_multi_step_decode_begin
    speculator._run_model = _run_model


def _see_through_standalone(speculator: Any, view: SpeculatorView, batches: list[Any]) -> None:
    """The first pass has tokens more, and metadata and slots of its own."""
    prefill, decode = speculator._prefill, speculator._multi_step_decode
    run_model, build = speculator._run_model, speculator._build_attn_metadata
    expect(prefill, "input_batch")
    expect(decode, "input_batch")
    expect(run_model, "input_ids", "positions", "attn_metadata", "slot_mappings")
    expect(build, "slot_mappings")

    def _prefill(*args: Any, **kwargs: Any) -> None:
        if batches:
            view.begin_first_pass(batches[0])
        prefill(*args, **kwargs)

    def _multi_step_decode(*args: Any, **kwargs: Any) -> None:
        if batches:
            view.begin_next_passes(batches[0])
        decode(*args, **kwargs)

    def _run_model(input_ids: Any, positions: Any, *args: Any, **kwargs: Any) -> Any:
        return run_model(input_ids, view.positions(positions), *args, **kwargs)

    def _build_attn_metadata(*args: Any, slot_mappings: Any = None, **kwargs: Any) -> Any:
        if slot_mappings is not None:
            view.correct_slots(slot_mappings[0])
        return build(*args, slot_mappings=slot_mappings, **kwargs)

    speculator._prefill = _prefill
    speculator._multi_step_decode = _multi_step_decode
    speculator._run_model = _run_model
    speculator._build_attn_metadata = _build_attn_metadata
