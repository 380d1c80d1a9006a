"""The positions that a prompt takes, and where its new text finds room (PML page, "Prompt")."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from operator import attrgetter

from vllm_promptcache.contract.plan import Segment
from vllm_promptcache.layout.parts import Piece

_start = attrgetter("start")


class Track:
    """Pieces by position. None overlap; `pieces` is always sorted by position.

    Changed by `put` only.
    """

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = sorted(pieces, key=_start)
        self._text_ends: dict[int, int] = {}

    @property
    def end(self) -> int:
        """One after the last position that is taken; 0 where none is."""
        return self.pieces[-1].end if self.pieces else 0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments in position order."""
        return tuple([piece.segment for piece in self.pieces])

    def end_before(self, position: int) -> int:
        """One after the last position taken by pieces that start before `position`; 0 where none do."""
        index = bisect_left(self.pieces, position, key=_start)
        return self.pieces[index - 1].end if index else 0

    def room(self, position: int) -> tuple[int, int | None]:
        """The free positions `[start, end)` from `position` on; `end` None where there is no end.

        Text put there before is gone past; anything else leaves no room.
        """
        index = bisect_left(self.pieces, position, key=_start)
        if index:
            # Text that ran on over a module that has no tokens.
            position = max(position, self.pieces[index - 1].end)
        while position in self._text_ends:
            position = self._text_ends[position]
        index = bisect_left(self.pieces, position, key=_start)
        return position, self.pieces[index].start if index < len(self.pieces) else None

    def put(self, piece: Piece) -> None:
        """Adds a piece of new text where there is room."""
        self._text_ends[piece.start] = piece.end
        insort(self.pieces, piece, key=_start)
