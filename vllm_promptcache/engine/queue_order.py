"""Who is tried first in a step, where more is to be encoded for some of those who wait than fits one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from vllm.v1.request import Request

from vllm_promptcache.engine.composed_request import ComposedRequest


def fair_order(
    waiting: Iterable[Request], composed: Mapping[str, ComposedRequest], max_encodings: int, max_tokens: int
) -> list[Request] | None:
    """Another order for a queue in which encodings stand before those that they are for; None if it may stay.

    First as before, up to ``max_encodings`` encodings that compute ``max_tokens`` together: who came first
    gets on in any case. Then whoever has none among those and needs no more than so many, behind what it
    needs. Then the rest, as before.
    """
    queue = [(request, _owner(request, composed)) for request in waiting]
    end = _end_of_first(queue, composed, max_encodings, max_tokens)
    first, rest = queue[:end], queue[end:]
    served = {owner for request, owner in first if _is_encoding(request, composed)}
    counts = Counter(owner for request, owner in rest if _is_encoding(request, composed))
    early: list[Request] = []
    late: list[Request] = []
    for request, owner in rest:
        is_late = owner is None or counts[owner] > max_encodings or (counts[owner] and owner in served)
        (late if is_late else early).append(request)
    if not early or not late:
        return None
    return [*(request for request, _ in first), *early, *late]


def _end_of_first(
    queue: list[tuple[Request, str | None]],
    composed: Mapping[str, ComposedRequest],
    max_encodings: int,
    max_tokens: int,
) -> int:
    """Where in a queue there are more encodings than so many, or where they compute more tokens."""
    num_encodings = num_tokens = 0
    for index, (request, _) in enumerate(queue):
        if _is_encoding(request, composed):
            layout = composed[request.request_id].slot_layout
            num_tokens += layout.num_prompt_tokens - layout.num_cached_tokens
            num_encodings += 1
            if num_encodings > max_encodings or (num_tokens > max_tokens and num_encodings > 1):
                return index
    return len(queue)


def _is_encoding(request: Request, composed: Mapping[str, ComposedRequest]) -> bool:
    one = composed.get(request.request_id)
    return one is not None and one.is_encoding


def _owner(request: Request, composed: Mapping[str, ComposedRequest]) -> str | None:
    """The request that one of the queue is there for: itself, unless it is an encoding."""
    one = composed.get(request.request_id)
    return one.requester_id if one is not None and one.is_encoding else request.request_id
