"""Link tokens: the first tokens of each unit are computed anew for the request (EPIC's LegoLink).

They see everything before them, where the cached ones have seen their own unit and its context only. The
rest of the unit is reused as it was encoded.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_promptcache.contract.plan import CachedSegment, Segment
from vllm_promptcache.contract.unit import token_after_kept
from vllm_promptcache.repairs.unseen import renew_unseen


def renew_heads(segments: Iterable[Segment], num_tokens: int) -> list[Segment]:
    """The segments, with the first ``num_tokens`` kept tokens of each unit new.

    Tokens are counted in the whole unit, whether the prompt includes them all or not.
    """

    def renew(segment: CachedSegment) -> list[Segment]:
        unit, start, end = segment.unit, segment.start, segment.end
        cut = min(max(token_after_kept(unit.kept, num_tokens), start), end)
        head = [segment.renew(cut, "link")] if cut > start else []
        return [*head, segment.part(cut, end)] if cut < end else [*head]

    return renew_unseen(segments, renew)
