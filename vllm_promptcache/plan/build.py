"""A prompt over a layout to a plan (PML page, "Prompt").

On the path of every request: work grows with the modules a prompt includes, never with their tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import ChatTemplateError, IssueList, quote
from vllm_promptcache.layout.parts import ModuleLayout, Piece, ScaffoldLayout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.units import new_piece
from vllm_promptcache.plan.arguments import argument
from vllm_promptcache.plan.pools import place_members
from vllm_promptcache.plan.resolve import Included, NewText, Resolution, resolve_prompt
from vllm_promptcache.plan.track import Track
from vllm_promptcache.pml.nodes import MessageNode, PromptNode, TextNode

# Token IDs and what `NewSegment.source` says of them.
Tail = Sequence[tuple[Sequence[int], str]]


def build_plan(layout: SchemaLayout, prompt: PromptNode, tail: Tail = ()) -> Plan:
    """The plan of a prompt, followed by the `tail` runs of new tokens.

    Raises PMLError with every mistake: unknown names, what is included twice, arguments and text that
    do not fit, a prompt that leaves the model no position to generate at, or one without any token.
    """
    return build_resolved(layout, resolve_prompt(layout, prompt, IssueList()), tail)


def build_resolved(layout: SchemaLayout, resolution: Resolution, tail: Tail = ()) -> Plan:
    """As `build_plan`, for a prompt whose names have been looked up; their issues are raised here."""
    issues = resolution.issues
    scaffolds = _choose_scaffolds(layout, resolution.mask)
    track = Track(_included_pieces(resolution, scaffolds, layout))
    for token_ids, source in layout.trailing:
        track.put(new_piece(token_ids, max(track.end, layout.num_positions), source))
    if resolution.texts and resolution.complete:
        _Writer(layout, resolution, track).write()
    issues.raise_if_any()
    for token_ids, source in tail:
        if len(token_ids):
            track.put(new_piece(token_ids, track.end, source))
    place = resolution.prompt.place
    if not track.pieces:
        issues.add(place.issue("the prompt is empty: nothing that it includes has a token"))
    elif track.end >= layout.max_model_len:
        what = f"the prompt ends at position {track.end}; the model has {layout.max_model_len} positions"
        issues.add(place.issue(f"{what} and needs one to generate at"))
    issues.raise_if_any()
    segments = _end_in_new(track.segments, resolution)
    return Plan(layout.name, layout.digest, _units(layout, segments), segments)


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


# New text


def _set_ends(included: Sequence[Included]) -> None:
    """Sets the ends of included modules, which know those of their arguments only."""
    # From the innermost out: a module ends where the last thing included in it ends.
    for one in reversed(included):
        module = one.module
        one.end = max(one.end, module.start if module.own_end is None else module.own_end)
        if one.parent is not None:
            one.parent.end = max(one.parent.end, one.end)


class _Writer:
    """Puts a prompt's own text where it belongs."""

    def __init__(self, layout: SchemaLayout, resolution: Resolution, track: Track) -> None:
        self._layout = layout
        self._resolution = resolution
        self._track = track
        self._issues = resolution.issues
        roles = resolution.schema_roles
        self._previous_role = roles[-1] if roles else None

    def write(self) -> None:
        """Adds all new text to the track, in document order."""
        _set_ends(self._resolution.included)
        for text in self._resolution.texts:
            if isinstance(text.node, MessageNode):
                self._message(text.node)
            else:
                self._text(text, text.node)

    def _text(self, text: NewText, node: TextNode) -> None:
        token_ids = self._layout.encoder.encode(node.text)
        if not token_ids:
            return
        if text.num_included_before == len(self._resolution.included):
            self._append(token_ids, node.place.label("prompt"))
            return
        start, end = self._track.room(self._start(text))
        if end is not None and len(token_ids) > end - start:
            self._issues.add(node.place.issue(self._no_room(len(token_ids), start, end)))
            return
        self._track.put(new_piece(token_ids, start, node.place.label("prompt")))

    def _start(self, text: NewText) -> int:
        """Where text starts that has a module after it."""
        if text.before is not None:
            return text.before.end
        if text.after is not None:
            return max(text.parent.module.start, self._track.end_before(text.after.module.start))
        return text.parent.end

    def _no_room(self, num_tokens: int, start: int, end: int) -> str:
        modules = {piece.start: i.module for i in self._resolution.included for piece in i.module.pieces}
        what = f"the text of {quote(modules[end].path)}" if end in modules else "what is included next"
        return f"the text has {num_tokens} tokens; {end - start} fit before {what}"

    def _append(self, token_ids: Sequence[int], source: str) -> None:
        if token_ids:
            self._track.put(new_piece(token_ids, self._track.end, source))

    def _message(self, node: MessageNode) -> None:
        """A message's words and text, each run on its own, at the end."""
        try:
            before, after = self._layout.encoder.role_tokens(node.role, self._previous_role)
        except ChatTemplateError as error:
            self._issues.add(node.place.issue(str(error)))
            return
        self._previous_role = node.role
        source = node.place.label("prompt")
        self._append(before, source)
        for text in node.texts:
            self._append(self._layout.encoder.encode(text.text), text.place.label("prompt"))
        self._append(after, source)


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
    end = last.end_position
    return next((module.source for module in modules if module.own_end == end), last.unit.id)


def _units(layout: SchemaLayout, segments: Iterable[Segment]) -> tuple[Unit, ...]:
    """The units that segments name, and those of their contexts: the layout's, in its order, then those of
    pools' members."""
    named = dict.fromkeys(segment.unit for segment in segments if isinstance(segment, CachedSegment))
    members = [unit for unit in named if unit not in layout.unit_places]
    needed = {seen for unit in members for seen in unit.context}
    needed.update(unit for unit in named if unit in layout.unit_places)
    places = set().union(*[layout.unit_places[unit] for unit in needed])
    return (*[layout.units[place] for place in sorted(places)], *members)
