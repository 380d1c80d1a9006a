"""Drafters of V1's model runner: where they count, and which layers are theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_promptcache.compat.shims import expect


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
