"""A prompt as turns of a conversation: what stands in which message, in order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_promptcache.contract.plan import CachedSegment, NewSegment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import ChatTemplateError, IssueList, quote
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import MessageSpan, Piece
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.layout.units import new_piece
from vllm_promptcache.plan.resolve import Included, NewText, Resolution
from vllm_promptcache.pml.nodes import MessageNode, TextNode
from vllm_promptcache.pml.source import Place


class Flowing(NamedTuple):
    """New text without a place of its own: it stands right behind what is before it.

    `text` is what `token_ids` are of, where it may still be cut.
    """

    token_ids: Sequence[int]
    source: str
    text: str = ""


class Floating(NamedTuple):
    """A unit without a place of its own: it stands right behind what is before it, and is reused there."""

    unit: Unit


# What a message holds, and what a conversation is made of.
Part = Piece | Flowing
AnyPart = Part | Floating


class Words(NamedTuple):
    """The chat template's words at one side of a message: their text, and the parts that hold it."""

    text: str
    parts: list[Part]


NO_WORDS = Words("", [])


# Not frozen: filled while pieces are walked, and joined with neighbours for a conversation.
@dataclass(slots=True, eq=False)
class Turn:
    """A message of a prompt, or, without a `role`, what stands in no message.

    `before` and `after` are the words that the schema holds around it. `source` is where it begins.
    `is_new` says whether the prompt, not the schema, holds it; `place` is that of the prompt's message;
    `is_loose` says whether it stood in no message, `asks` whether it is a message or text of the prompt's;
    `lacks` whether the schema has no words before and after it, since they change within a day.
    """

    role: str | None
    source: str
    parts: list[Part] = field(default_factory=list)
    before: Words = NO_WORDS
    after: Words = NO_WORDS
    is_new: bool = False
    place: Place | None = None
    is_loose: bool = False
    asks: bool = False
    lacks: tuple[bool, bool] = (False, False)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no token."""
        return not any(isinstance(part, Piece) or part.token_ids for part in self.parts)


def flowing(encoder: TextEncoder, text: str, source: str) -> Flowing:
    """Text to stand right behind what is before it."""
    return Flowing(encoder.encode(text), source, text)


def read_turns(layout: SchemaLayout, resolution: Resolution, pieces: Iterable[Piece]) -> list[Turn]:
    """All that a prompt includes and says, in order; `pieces` are what has a place already.

    Adds an issue for each module of a message that cannot stand in it.
    """
    return _Reader(layout, resolution).read(pieces)


def with_words(turns: Iterable[Turn], encoder: TextEncoder, issues: IssueList) -> list[Part]:
    """The parts of turns, with the words of the template around the prompt's own messages.

    Adds an issue where the template has no such role.
    """
    parts: list[Part] = []
    previous: str | None = None
    for turn in turns:
        words: Sequence[Sequence[int]] = ((), ())
        if turn.role is not None and turn.place is not None:
            try:
                words = encoder.role_tokens(turn.role, previous)
            except ChatTemplateError as error:
                issues.add(turn.place.issue(str(error)))
        elif turn.role is not None and any(turn.lacks):
            words = [
                late if lacks else ()
                for late, lacks in zip(_words_now(turn.role, previous, encoder), turn.lacks, strict=True)
            ]
        before, after = (Flowing(token_ids, turn.source) for token_ids in words)
        parts += [before, *turn.before.parts, *turn.parts, *turn.after.parts, after]
        previous = turn.role or previous
    return parts


def _words_now(role: str, previous: str | None, encoder: TextEncoder) -> list[Sequence[int]]:
    """What the template writes around a message of the schema now."""
    template = encoder.template
    words = template.opening(role) if previous is None else template.words(role, previous)
    return [encoder.encode(words.before), encoder.encode(words.after)]


def take_bos(turns: list[Turn]) -> list[Piece]:
    """Takes the schema's first token, BOS, out of its turns."""
    first = turns[0].parts[0] if turns and turns[0].parts else None
    if not isinstance(first, Piece) or first.start > 0:
        return []
    bos, *rest = cut_piece(first, [1])
    turns[0].parts[:1] = rest
    if turns[0].role is None and not turns[0].parts:
        del turns[0]
    return [bos]


class _Reader:
    def __init__(self, layout: SchemaLayout, resolution: Resolution) -> None:
        self._layout = layout
        self._resolution = resolution
        self._encoder = layout.encoder
        self._issues: IssueList = resolution.issues
        self._spans: list[MessageSpan] = resolution.messages
        self._members = _members(resolution.included)
        self._turns: list[Turn] = []
        self._of_span: dict[MessageSpan, Turn] = {}
        self._of_message: dict[int, Turn] = {}

    def read(self, pieces: Iterable[Piece]) -> list[Turn]:
        self._check_members()
        cuts = sorted(
            {cut for span in self._spans for cut in span[:4]}
            | {cut for member in self._members for cut in _range(member)}
        )
        placed: list[tuple[int, int, MessageSpan | NewText | Piece]] = []
        placed += [(span.start, 0, span) for span in self._spans]
        placed += [(_anchor(text), 1, text) for text in self._resolution.texts if text.message is not None]
        placed += [(part.start, 2, part) for piece in pieces for part in cut_piece(piece, cuts)]
        placed.sort(key=lambda item: item[:2])
        for _, _, item in placed:
            if isinstance(item, MessageSpan):
                self._turn_of_span(item)
            elif isinstance(item, Piece):
                self._piece(item)
            elif isinstance(item.node, TextNode) and item.message is not None:
                text = flowing(self._encoder, item.node.text, item.node.place.label("prompt"))
                self._turn_of_message(item.message).parts.append(text)
        self._trailing()
        self._rest()
        return self._turns

    def _check_members(self) -> None:
        for member in self._members:
            module, place = member.module, member.node.place
            for span in self._spans:
                if span.start <= module.start < span.end and not module.start <= span.start < module.end:
                    what = f"module {quote(module.name)} stands in the schema's {span.role!r} message"
                    self._issues.add(place.issue(f"{what} and in no other: include it outside of messages"))
                elif module.start <= span.start < module.end:
                    what = f"module {quote(module.name)} holds a {span.role!r} message: include it outside of"
                    self._issues.add(place.issue(f"{what} messages"))

    def _turn_of_span(self, span: MessageSpan) -> Turn:
        if span not in self._of_span:
            before, after = Words(span.before or "", []), Words(span.after or "", [])
            turn = Turn(span.role, "schema", before=before, after=after)
            turn.lacks = span.before is None, span.after is None
            self._of_span[span] = turn
            self._turns.append(turn)
        return self._of_span[span]

    def _turn_of_message(self, node: MessageNode) -> Turn:
        turn, source = self._of_message.get(id(node)), node.place.label("prompt")
        if turn is None:
            turn = self._of_message[id(node)] = Turn(node.role, source, is_new=True, place=node.place)
            self._turns.append(turn)
        elif self._turns[-1] is not turn:
            between = self._turns[self._turns.index(turn) + 1 :]
            if any(other.role is not None for other in between):
                what = "its modules do not stand next to each other in the schema"
                self._issues.add(node.place.issue(f"{what}, whose order is used"))
                return turn
            # The schema's own text between two modules of a message is in it.
            del self._turns[-len(between) :]
            turn.parts += [part for other in between for part in other.parts]
        return turn

    def _piece(self, piece: Piece) -> None:
        index = bisect_right(self._spans, piece.start, key=lambda span: span.start) - 1
        span = self._spans[index] if index >= 0 else None
        if span is not None and piece.start < span.end:
            turn = self._turn_of_span(span)
            parts = turn.parts
            if piece.start < span.content:
                parts = turn.before.parts
            elif piece.start >= span.content_end:
                parts = turn.after.parts
            parts.append(piece)
            return
        for member in self._members:
            start, end = _range(member)
            if start <= piece.start < end:
                assert member.message is not None
                self._turn_of_message(member.message).parts.append(piece)
                return
        self._loose("schema").parts.append(piece)

    def _trailing(self) -> None:
        """Puts the schema's own text behind a pool that has no length."""
        for text in self._layout.trailing:
            piece = new_piece(text.token_ids, self._layout.num_positions, text.source)
            if text.message is None:
                self._loose("schema").parts.append(piece)
                continue
            turn = self._turn_of_span(self._layout.root.messages[text.message])
            sides = (turn.parts, turn.after.parts, turn.before.parts)
            sides[text.side].append(piece)

    def _loose(self, source: str) -> Turn:
        if not self._turns or self._turns[-1].role is not None:
            self._turns.append(Turn(None, source))
        return self._turns[-1]

    def _rest(self) -> None:
        """Puts what follows the last module: text and messages, before the message with modules that they
        precede."""
        waiting: list[Turn] = []
        for text in self._resolution.rest:
            node = text.node
            source = node.place.label("prompt")
            if isinstance(node, TextNode):
                if not waiting or waiting[-1].role is not None:
                    waiting.append(Turn(None, source, is_new=True))
                waiting[-1].parts.append(flowing(self._encoder, node.text, source))
            elif (turn := self._of_message.get(id(node))) is not None:
                index = self._turns.index(turn)
                self._turns[index:index] = waiting
                waiting = []
            else:
                parts: list[Part] = [
                    flowing(self._encoder, run.text, run.place.label("prompt")) for run in node.texts
                ]
                waiting.append(Turn(node.role, source, parts, is_new=True, place=node.place))
        self._turns += waiting


def _members(included: Iterable[Included]) -> list[Included]:
    """The modules that messages of the prompt hold, without those in other modules."""
    return [one for one in included if one.message is not None and one.parent and one.parent.parent is None]


def _range(member: Included) -> tuple[int, int]:
    """The positions of a module, or those that a pool's members take."""
    module = member.module
    return module.start, max(module.end, member.end) if module.pool is not None else module.end


def _anchor(text: NewText) -> int:
    """The position at which a message's own text stands, before anything moves."""
    if text.before is not None:
        return text.before.end
    if text.after is not None:
        return text.after.module.start
    return text.parent.end


def cut_piece(piece: Piece, cuts: Sequence[int]) -> Iterable[Piece]:
    """The parts of a piece between these positions, which increase."""
    start, segment = piece.start, piece.segment
    for cut in (*cuts[bisect_right(cuts, start) : bisect_right(cuts, piece.end - 1)], piece.end):
        first, last = start - piece.start, cut - piece.start
        if isinstance(segment, CachedSegment):
            yield Piece(start, cut, segment.part(segment.start + first, segment.start + last))
        else:
            ids = segment.token_ids[first:last]
            yield Piece(start, cut, NewSegment(ids, start, segment.source, segment.is_repair))
        start = cut
