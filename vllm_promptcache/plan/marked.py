"""A plain prompt with marked parts to a plan: the parts are members of a pool that stands where they stand.

Tokens and positions are the plain prompt's, but for tokens that would merge across a part's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan, Segment
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.layout.parts import unit_of

MARKED = "messages"


@dataclass(frozen=True)
class TokenRun:
    """Tokens of a prompt that were tokenized by themselves. `mark` names them where they are marked."""

    token_ids: Sequence[int]
    mark: str | None = None


def build_marked(runs: Sequence[TokenRun], lead: Sequence[int]) -> Plan:
    """The plan of runs, one behind the other from position 0 on; marked ones are reused.

    `lead` are the tokens that marked ones have seen: the prompt's text from its beginning on, up to the first
    of them or less far, so that other prompts have it as well. Their home is directly behind it. The same
    tokens are one unit, whatever they are called. At least one run has a token.
    """
    context = (unit_of(f"{MARKED}:lead", lead, 0, ()),) if lead else ()
    units: dict[tuple[int, ...], Unit] = {}
    segments: list[Segment] = []
    position = 0
    for run in runs:
        if not run.token_ids:
            continue
        if run.mark is None:
            segments.append(NewSegment(run.token_ids, position, MARKED))
        else:
            key = tuple(run.token_ids)
            name = f"{MARKED}/{run.mark}"
            unit = units.setdefault(key, unit_of(name, run.token_ids, len(lead), context))
            segments.append(CachedSegment(unit, 0, unit.num_tokens, position))
        position += len(run.token_ids)
    segments = _end_in_new(segments)
    used = {segment.unit for segment in segments if isinstance(segment, CachedSegment)}
    named = tuple(unit for unit in units.values() if unit in used)
    return Plan(MARKED, "", (*context, *named) if named else (), tuple(segments))


def _end_in_new(segments: list[Segment]) -> list[Segment]:
    """Makes a last cached token a new one: its logits are what the first generated token comes from."""
    last = segments[-1]
    if isinstance(last, NewSegment):
        return segments
    token = NewSegment([last.unit.token_list[last.end - 1]], last.end_position - 1, MARKED)
    rest = [last.part(last.start, last.end - 1)] if last.num_tokens > 1 else []
    return [*segments[:-1], *rest, token]
