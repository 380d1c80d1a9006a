"""What the scheduler keeps for a request that is composed, and for one that encodes a unit."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.v1.request import Request

from vllm_promptcache.blocks.composition import Composition, UnitKey
from vllm_promptcache.blocks.seats import Seats


@dataclass(eq=False)
class ComposedRequest:
    """A request whose cached tokens come from units.

    ``encodes`` is the unit whose states it computes, for the scheduler's own encoding requests.
    ``seated`` is true while the request holds its shared blocks. ``num_encoded_units`` counts the units
    that were not resident when it arrived.
    """

    request: Request
    composition: Composition
    seats: Seats
    encodes: UnitKey | None = None
    seated: bool = False
    num_encoded_units: int = 0
