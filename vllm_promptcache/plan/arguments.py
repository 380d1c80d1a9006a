"""Arguments: what a prompt gives for a module's parameters."""

from __future__ import annotations

from vllm_promptcache.errors import IssueList, quote
from vllm_promptcache.layout.parts import ParameterLayout, Piece
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.units import new_piece
from vllm_promptcache.plan.resolve import Included
from vllm_promptcache.pml.nodes import IncludeNode


def argument(
    included: Included, parameter: ParameterLayout, layout: SchemaLayout, issues: IssueList
) -> Piece | None:
    """The new text for a parameter where its module was laid out; None where there is none.

    Adds an issue where it is longer than its room.
    """
    node = included.node
    text = node.arguments.get(parameter.name) if isinstance(node, IncludeNode) else None
    if text is None:
        return parameter.default
    token_ids = layout.encoder.encode(text)
    place = node.place.at(parameter.name)
    if len(token_ids) > parameter.num_positions:
        what = (
            f"the argument for parameter {quote(parameter.name)} has {len(token_ids)} tokens;"
            f" {parameter.num_positions} fit"
        )
        issues.add(place.issue(what))
    token_ids = token_ids[: parameter.num_positions]
    return new_piece(token_ids, parameter.start, place.label("prompt")) if token_ids else None
