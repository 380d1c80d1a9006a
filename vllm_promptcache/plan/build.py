"""A prompt over a layout to a plan (PML page, "Prompt").

On the path of every request: work grows with the modules a prompt includes, never with their tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.parts import ModuleLayout, Piece, ScaffoldLayout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.arguments import argument
from vllm_promptcache.plan.between import write_between
from vllm_promptcache.plan.conversation import Turns, converse, join_turns
from vllm_promptcache.plan.places import place_parts
from vllm_promptcache.plan.pools import place_members
from vllm_promptcache.plan.resolve import Included, Resolution, resolve_prompt
from vllm_promptcache.plan.track import Track
from vllm_promptcache.plan.turns import AnyPart, Floating, Flowing, Turn, read_turns, take_bos, with_words
from vllm_promptcache.pml.nodes import PromptNode

NO_TOOLS = "the model's chat template writes no text of its own for these tools"

# Token IDs and what `NewSegment.source` says of them.
Continuation = Sequence[tuple[Sequence[int], str]]


def build_plan(layout: SchemaLayout, prompt: PromptNode, continuation: Continuation = ()) -> Plan:
    """The plan of a prompt, followed by the `continuation`'s runs of new tokens.

    Raises PMLError with every mistake: unknown names, what is included twice, arguments and text that
    do not fit, a prompt that leaves the model no position to generate at, or one without any token.
    """
    return build_resolved(layout, resolve_prompt(layout, prompt, IssueList()), continuation)


def build_resolved(layout: SchemaLayout, resolution: Resolution, continuation: Continuation = ()) -> Plan:
    """As `build_plan`, for a prompt whose names have been looked up; their issues are raised here."""
    turns = _turns(layout, resolution)
    parts = with_words(turns, layout.encoder, resolution.issues)
    resolution.issues.raise_if_any()
    following = [Flowing(ids, source) for ids, source in continuation]
    return _plan(layout, resolution, [*parts, *following], resolution.notes)


def build_chat(layout: SchemaLayout, resolution: Resolution, asked: Turns) -> Plan:
    """The plan of a prompt and the messages of a chat request: what the chat template writes for both.

    Raises PMLError as `build_plan`, and ChatTemplateError where the template refuses the conversation.
    """
    turns = _turns(layout, resolution)
    resolution.issues.raise_if_any()
    bos = take_bos(turns) if layout.has_bos else []
    joined = join_turns(turns, layout.has_roles, layout.encoder)
    parts = converse(joined, bos, asked, layout.encoder, layout.tools)
    notes = resolution.notes
    if layout.tools is not None and asked.tools and not any(isinstance(part, Floating) for part in parts):
        notes = (*notes, NO_TOOLS)
    return _plan(layout, resolution, parts, notes)


def _turns(layout: SchemaLayout, resolution: Resolution) -> list[Turn]:
    scaffolds = _choose_scaffolds(layout, resolution.mask)
    track = Track(_included_pieces(resolution, scaffolds, layout))
    if resolution.complete:
        write_between(layout, resolution, track)
    return read_turns(layout, resolution, track.pieces)


def _plan(
    layout: SchemaLayout, resolution: Resolution, parts: Iterable[AnyPart], notes: tuple[str, ...]
) -> Plan:
    segments = tuple(place_parts(parts))
    issues, place = resolution.issues, resolution.prompt.place
    if not segments:
        issues.add(place.issue("the prompt is empty: nothing that it includes has a token"))
    elif (end := segments[-1].end_position) >= layout.max_model_len:
        what = f"the prompt ends at position {end}; the model has {layout.max_model_len} positions"
        issues.add(place.issue(f"{what} and needs one to generate at"))
    issues.raise_if_any()
    segments = _end_in_new(segments, resolution)
    return Plan(layout.name, layout.digest, _units(layout, segments), segments, notes)


# What is included


def _choose_scaffolds(layout: SchemaLayout, mask: int) -> list[ScaffoldLayout]:
    """The scaffolds that a prompt with these modules uses: in their order, none overlapping another."""
    chosen: list[ScaffoldLayout] = []
    taken = 0
    for scaffold in layout.scaffolds:
        covered = scaffold.covered & mask
        if scaffold.required & ~mask == 0 and covered & taken == 0:
            chosen.append(scaffold)
            taken |= covered
    return chosen


def _included_pieces(
    resolution: Resolution, scaffolds: Sequence[ScaffoldLayout], layout: SchemaLayout
) -> list[Piece]:
    """All pieces of included modules, and of their arguments, whose ends it sets."""
    in_scaffolds = 0
    pieces: list[Piece] = []
    for scaffold in scaffolds:
        in_scaffolds |= scaffold.covered & resolution.mask
        pieces.extend(_scaffold_pieces(scaffold, resolution.mask))
    for included in resolution.included:
        module = included.module
        if module.pool is not None:
            pieces += place_members(included, layout, resolution.issues)
        if module.parameters:
            for parameter in module.parameters.values():
                piece = argument(included, parameter, layout, resolution.issues)
                if piece is not None:
                    pieces.append(piece)
                    included.end = max(included.end, piece.end)
        if not in_scaffolds >> module.index & 1:
            pieces += module.pieces
    return pieces


def _scaffold_pieces(scaffold: ScaffoldLayout, mask: int) -> Iterable[Piece]:
    """The scaffold's tokens that belong to included modules, in runs as long as they can be."""
    merged: list[Piece] = []
    for module, start, end, segment in scaffold.pieces:
        if not mask >> module & 1:
            continue
        if merged and merged[-1].end == start:
            last = merged[-1].segment
            assert isinstance(last, CachedSegment), "a scaffold's pieces are cached"
            if last.end == segment.start:
                joined = CachedSegment(scaffold.unit, last.start, segment.end)
                merged[-1] = Piece(merged[-1].start, end, joined)
                continue
        merged.append(Piece(start, end, segment))
    return merged


# The plan's parts


def _end_in_new(segments: tuple[Segment, ...], resolution: Resolution) -> tuple[Segment, ...]:
    """Makes a last cached token a new one: its logits are what the first generated token comes from."""
    last = segments[-1]
    if isinstance(last, NewSegment):
        return segments
    index = last.end - 1
    position = last.end_position - 1
    recomputed = NewSegment([last.unit.token_list[index]], position, _source_of(last, resolution))
    if index == last.start:
        return (*segments[:-1], recomputed)
    return (*segments[:-1], last.part(last.start, index), recomputed)


def _source_of(last: CachedSegment, resolution: Resolution) -> str:
    """Where in the schema the included module stands whose own text ends a segment."""
    items = (item for included in resolution.included for item in included.items)
    for member in items:
        if isinstance(member, Included) and member.module.unit is last.unit:
            return member.module.source
    modules: Iterable[ModuleLayout] = (included.module for included in resolution.included)
    end = last.end_position - last.moved
    return next((module.source for module in modules if module.own_end == end), last.unit.id)


def _units(layout: SchemaLayout, segments: Iterable[Segment]) -> tuple[Unit, ...]:
    """The units that segments name, and those of their contexts: the layout's, in its order, then those of
    pools' members."""
    named = dict.fromkeys(segment.unit for segment in segments if isinstance(segment, CachedSegment))
    members = [unit for unit in named if unit not in layout.unit_places]
    pending = [seen for unit in members for seen in unit.context]
    pending += [unit for unit in named if unit in layout.unit_places]
    places: set[int] = set()
    while pending:
        unit = pending.pop()
        if (place := layout.unit_places[unit]) not in places:
            places.add(place)
            pending += unit.seen
    return (*[layout.units[place] for place in sorted(places)], *members)
