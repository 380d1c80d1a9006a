"""What the scheduler keeps for one unit, and where its states are."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property

from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.blocks.composition import UnitText
from vllm_promptcache.blocks.footprint import ContextTokens, UnitFootprint
from vllm_promptcache.blocks.geometry import UnitGeometry
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey


class Residency(enum.Enum):
    """A unit's states are not there, being computed, or there."""

    ABSENT = "absent"
    ENCODING = "encoding"
    RESIDENT = "resident"


@dataclass(eq=False)
class StoredUnit:
    """One unit, or head of one, where it stands, for one adapter and tenant.

    ``context`` are the units that it has seen, where they stood then: it is encoded at ``origin``, and its
    states are moved from there. ``seen`` are those of them that it holds, which hold the rest, and
    ``context_tokens`` counts those of the context.

    ``blocks`` holds one reference each while they are allocated. ``users`` counts running requests whose
    block tables or edge rows rest on them, ``holders`` whoever wants the unit to stay known: live
    requests and units in whose context it stands. ``requesters`` are the live requests that are composed
    of it. ``idle_since`` is when the last user went, in seconds; after ``ttl_s`` more its states go, as
    requests have said. ``is_warmed`` says that it is to be encoded though nobody asks for it.
    """

    key: UnitKey
    text: UnitText
    context: tuple[UnitKey, ...]
    seen: tuple[UnitKey, ...]
    context_tokens: ContextTokens
    geometry: UnitGeometry
    footprint: UnitFootprint
    origin: int
    residency: Residency = Residency.ABSENT
    pinned: bool = False
    is_warmed: bool = False
    retired: bool = False
    users: int = 0
    holders: int = 0
    requesters: dict[str, None] = field(default_factory=dict)
    blocks: list[KVCacheBlock] = field(default_factory=list)
    idle_since: float = 0.0
    ttl_s: float | None = None

    @cached_property
    def whole(self) -> UnitKey | None:
        """For a head, the key of its unit."""
        return self.key.whole if self.key.part != WHOLE else None

    @property
    def has_states(self) -> bool:
        """Whether its states are there, or are being computed."""
        return self.residency is not Residency.ABSENT

    @property
    def is_idle(self) -> bool:
        """Whether its states are there, and may go."""
        return self.residency is Residency.RESIDENT and not self.pinned and not self.users

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for its states, or has asked to have them ready."""
        return bool(self.requesters) or self.pinned or self.is_warmed
