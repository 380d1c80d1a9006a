"""The module store: which units are resident, in which physical blocks, and who holds them."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from vllm_promptcache.blocks.checks import check_place
from vllm_promptcache.blocks.composition import Composition, UnitText
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.heads import head_text, lay_out_head
from vllm_promptcache.blocks.seats import SharedBlocks
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey

MAX_KNOWN_UNITS = 20_000
# Rows beside the KV cache, of units that nobody asks for now: at most one for so many tokens that it holds.
KEPT_ROWS_PART = 4
PINNED_ROWS_PART = 2


class Residency(enum.Enum):
    """A unit's states are not there, being computed, or there."""

    ABSENT = "absent"
    ENCODING = "encoding"
    RESIDENT = "resident"


@dataclass(eq=False)
class StoredUnit:
    """One unit, or head of one, where it stands, for one adapter and tenant.

    ``context`` are the units that it has seen, where they stood then.
    ``blocks`` holds one reference each while they are allocated. ``users`` counts running requests whose
    block tables or edge rows rest on them, ``names`` whoever wants the unit to stay known: live
    requests and units in whose context it stands. ``last_use`` is a logical clock. Encoding the unit
    takes ``scratch_blocks`` besides those that it then keeps.
    """

    key: UnitKey
    text: UnitText
    context: tuple[UnitKey, ...]
    geometry: UnitGeometry
    scratch_blocks: int
    residency: Residency = Residency.ABSENT
    pinned: bool = False
    retired: bool = False
    users: int = 0
    names: int = 0
    last_use: int = 0
    blocks: list[KVCacheBlock] = field(default_factory=list)

    @cached_property
    def whole(self) -> UnitKey | None:
        """For a head, the key of its unit."""
        return self.key.whole if self.key.part != WHOLE else None


def has_states(unit: StoredUnit) -> bool:
    """Whether a unit's states are there, or are being computed."""
    return unit.residency is not Residency.ABSENT


class ModuleStore:
    """Owns the units' references to physical blocks of one KV cache group.

    Invariant: every allocated unit holds exactly one reference to each of its blocks, so that
    free + module blocks + requests' own blocks + the null block is the whole pool.
    """

    def __init__(self, block_pool: BlockPool, block_size: int, pin_limit: int, num_positions: int):
        self.block_pool = block_pool
        self.block_size = block_size
        self.pin_limit = pin_limit
        self.num_positions = num_positions
        self.units: dict[UnitKey, StoredUnit] = {}
        self._by_digest: dict[str, dict[UnitKey, None]] = {}
        self.dropped: list[UnitKey] = []
        self.num_evictions = 0
        self.num_kept_rows = 0
        self._heads: dict[UnitKey, set[UnitKey]] = {}
        self._clock = 0
        self._num_tokens = block_pool.num_gpu_blocks * block_size

    # -- names: who wants a unit to stay known ---------------------------------------------------

    def name(self, key: UnitKey, texts: Mapping[str, UnitText]) -> StoredUnit:
        """Add a holder of a unit; the first one makes it known, and its context with it.

        ``texts`` are by digest.

        Raises:
            KeyError: the unit, or one of its context, is neither known nor in ``texts``.
            ValueError: it, or one of its context, cannot stand where its key says.
        """
        unit = self.units.get(key)
        if unit is None:
            unit = self._know(key, texts[key.digest], texts)
        unit.names += 1
        return unit

    def _know(self, key: UnitKey, text: UnitText, texts: Mapping[str, UnitText]) -> StoredUnit:
        check_place(text, key.position, self.num_positions)
        context = text.context_keys(key)
        named: list[UnitKey] = []
        try:
            for seen in context:
                named.append(self.name(seen, texts).key)
        except (KeyError, ValueError):
            for seen in named:
                self.unname(seen)
            raise
        geometry = self._lay_out(key, text)
        edges = sum(self.units[seen].geometry.num_rows for seen in context)
        scratch_blocks = -(-(edges + len(text.token_ids)) // self.block_size)
        unit = self.units[key] = StoredUnit(key, text, context, geometry, scratch_blocks)
        self._by_digest.setdefault(key.digest, {})[key] = None
        if unit.whole is not None:
            self._heads.setdefault(unit.whole, set()).add(key)
        return unit

    def _lay_out(self, key: UnitKey, text: UnitText) -> UnitGeometry:
        if key.part != WHOLE:
            return lay_out_head(text, key.position, self.block_size)
        return lay_out_unit(text.positions + key.position, text.kept, self.block_size, text.breaks)

    def name_head(self, key: UnitKey, end: int) -> StoredUnit:
        """Add a holder of the head, up to token ``end``, of a unit that is known."""
        text = self.units[key].text
        return self.name(key.head(end), {key.digest: head_text(text, end)})

    def placements_of(self, digest: str) -> tuple[UnitKey, ...]:
        """All that is known of a unit, wherever it stands and whoever it is for."""
        return tuple(self._by_digest.get(digest, ()))

    def unname(self, key: UnitKey) -> None:
        """Remove a holder. A unit nobody names stays while resident and unpinned, until reclaimed."""
        unit = self.units[key]
        unit.names -= 1
        assert unit.names >= 0
        if not unit.names:
            self._forget_if_idle(unit)
        if len(self.units) > MAX_KNOWN_UNITS:
            self._forget_oldest_unnamed()

    # -- pins ------------------------------------------------------------------------------------

    @property
    def num_pinned_blocks(self) -> int:
        """Blocks promised to pinned units, resident or not."""
        return sum(u.geometry.num_blocks for u in self.units.values() if u.pinned)

    def pin(self, keys: Iterable[UnitKey]) -> bool:
        """Pin all of the units, or none when that would pass the pin limit, or when the rows of what is
        pinned would take half as much memory beside the KV cache as it takes itself."""
        units = [self.units[key] for key in dict.fromkeys(keys)]
        pinned = {u.key: u for u in [*units, *(u for u in self.units.values() if u.pinned)]}.values()
        if (
            sum(u.geometry.num_blocks for u in pinned) > self.pin_limit
            or sum(u.geometry.num_rows for u in pinned) > self._num_tokens // PINNED_ROWS_PART
        ):
            return False
        for unit in units:
            unit.pinned = True
        return True

    def unpin(self, keys: Iterable[UnitKey]) -> None:
        """Let units be reclaimed again."""
        for key in keys:
            unit = self.units[key]
            unit.pinned = False
            self._forget_if_idle(unit)

    def check_room(self, units: Collection[StoredUnit], num_private_blocks: int = 0) -> None:
        """Check that a request on the units, with so many blocks of its own, could be admitted if it were
        alone with all that can be pinned.

        Raises:
            ValueError: it would wait for ever, and everyone behind it.
        """
        own = [unit for unit in units if not unit.pinned]
        kept = sum([unit.geometry.num_blocks for unit in own])
        scratch = max([unit.scratch_blocks for unit in own], default=0)
        room = self.block_pool.num_gpu_blocks - 1 - self.pin_limit
        if kept + max(scratch, num_private_blocks) > room:
            raise ValueError(
                f"{kept + max(scratch, num_private_blocks)} KV blocks are needed while modules are encoded;"
                f" {room} are there for what is not pinned"
            )

    def check_room_alone(self, key: UnitKey) -> None:
        """Check that a unit could be encoded that nobody asks for: with its context, as ``check_room``."""
        unit = self.units[key]
        self.check_room([unit, *(self.units[seen] for seen in unit.context)])

    # -- residency -------------------------------------------------------------------------------

    def missing(self, composition: Composition) -> list[UnitKey]:
        """The units of a composition that are not resident."""
        units, resident = self.units, Residency.RESIDENT
        return [key for key in composition.unit_keys if units[key].residency is not resident]

    def begin_encoding(self, key: UnitKey) -> None:
        """Note that a request that encodes the unit is queued."""
        assert self.units[key].residency is Residency.ABSENT
        self.units[key].residency = Residency.ENCODING
        self.num_kept_rows += self.units[key].geometry.num_rows
        self._drop_old_rows()

    def allocate(self, key: UnitKey) -> None:
        """Take the unit's blocks from the pool; the caller has checked that they are free."""
        unit = self.units[key]
        assert unit.residency is Residency.ENCODING and not unit.blocks
        unit.blocks = self.block_pool.get_new_blocks(unit.geometry.num_blocks)

    def finish_encoding(self, key: UnitKey) -> None:
        """The step being scheduled writes the last of the unit's states: others in it may read them.

        Each layer writes all keys and values of a step before it reads any. The encoding request uses
        the unit until the step is on its way: its blocks must not be another's in the same step.
        """
        unit = self.units[key]
        assert unit.residency is Residency.ENCODING and len(unit.blocks) == unit.geometry.num_blocks
        unit.residency = Residency.RESIDENT
        self.use((key,))

    def interrupt_encoding(self, key: UnitKey, *, given_up: bool) -> None:
        """The encoding request lost its blocks: preempted, or ``given_up`` for good."""
        unit = self.units[key]
        assert unit.residency is not Residency.ABSENT
        if unit.residency is Residency.RESIDENT:  # in the step that would have finished it
            unit.users -= 1
            assert not unit.users, "a request was seated on a unit whose encoding was taken back"
        self._release_blocks(unit)
        unit.residency = Residency.ENCODING
        if given_up:
            self._let_go(unit)
        self._forget_if_idle(unit)

    def shared_blocks(self, ranges: Iterable[SharedBlocks]) -> list[KVCacheBlock]:
        """The physical blocks of shared ranges, in order."""
        return [b for r in ranges for b in self.units[r.unit].blocks[r.start : r.end]]

    def use(self, keys: Iterable[UnitKey]) -> None:
        """A running request rests on the units: they must not be reclaimed."""
        for key in keys:
            unit = self.units[key]
            assert unit.residency is Residency.RESIDENT
            unit.users += 1
            self._touch(unit)

    def release(self, keys: Iterable[UnitKey]) -> None:
        """The request is over, or preempted."""
        for key in keys:
            unit = self.units[key]
            unit.users -= 1
            assert unit.users >= 0
            if not unit.users and not unit.names:
                self._forget_if_idle(unit)

    # -- reclaiming ------------------------------------------------------------------------------

    def reclaim(self, protected: Set[UnitKey]) -> Iterator[UnitKey]:
        """Drop units with blocks that are not pinned, used or protected: the least recently used first,
        one at each step, and nothing before the first."""
        idle = [u for u in self.units.values() if u.blocks and self._is_idle(u) and u.key not in protected]
        for unit in sorted(idle, key=lambda u: u.last_use):
            if unit.blocks and self._is_idle(unit):  # not gone with one before it
                self._evict(unit)
                self.num_evictions += 1
                yield unit.key

    def discard(self, key: UnitKey) -> None:
        """Drop a unit's states, if it has any that nobody uses or names."""
        unit = self.units.get(key)
        if unit is not None and self._is_idle(unit) and not unit.names:
            self._evict(unit)

    def drop_all(self) -> None:
        """Drop every unit's states that no running request rests on, pinned ones too.

        They are encoded again on demand: for when the weights or the KV cache have changed.
        """
        for unit in list(self.units.values()):
            if unit.residency is Residency.RESIDENT and not unit.users:
                self._evict(unit)

    def retire(self, key: UnitKey) -> None:
        """The unit's schema is gone: unpin it, and drop its states when nobody holds it any more."""
        unit = self.units[key]
        unit.pinned = False
        unit.retired = True
        self._forget_if_idle(unit)

    def revive(self, key: UnitKey) -> None:
        """The unit's text is registered again."""
        self.units[key].retired = False

    def take_dropped(self) -> tuple[UnitKey, ...]:
        """Units evicted since the last call and not resident again."""
        dropped, self.dropped = self.dropped, []
        return tuple(k for k in dropped if k not in self.units or not has_states(self.units[k]))

    def _touch(self, unit: StoredUnit) -> None:
        self._clock += 1
        unit.last_use = self._clock

    def _is_idle(self, unit: StoredUnit) -> bool:
        return unit.residency is Residency.RESIDENT and not unit.pinned and not unit.users

    def _evict(self, unit: StoredUnit) -> None:
        self._release_blocks(unit)
        self._let_go(unit)
        self._forget_if_idle(unit)
        # A head has no blocks that are wanted: it goes with its unit, if nobody waits for it.
        for key in list(self._heads.get(unit.key, ())):
            self.discard(key)

    def _let_go(self, unit: StoredUnit) -> None:
        """The unit's states are gone; the workers are told to drop its rows."""
        unit.residency = Residency.ABSENT
        self.num_kept_rows -= unit.geometry.num_rows
        self.dropped.append(unit.key)

    def _release_blocks(self, unit: StoredUnit) -> None:
        self.block_pool.free_blocks(reversed(unit.blocks))
        unit.blocks = []

    def _forget_if_idle(self, unit: StoredUnit) -> None:
        if unit.retired and not unit.names and self._is_idle(unit):
            self._evict(unit)
        elif not (unit.names or unit.pinned or unit.users or has_states(unit)):
            del self.units[unit.key]
            placements = self._by_digest[unit.key.digest]
            del placements[unit.key]
            if not placements:
                del self._by_digest[unit.key.digest]
            if unit.whole is not None:
                self._heads[unit.whole].discard(unit.key)
                if not self._heads[unit.whole]:
                    del self._heads[unit.whole]
            for seen in unit.context:
                self.unname(seen)

    def _drop_old_rows(self) -> None:
        """Rows take memory beside the KV cache: drop the least recently used units with rows that nobody
        names. What a unit has in blocks of its own is dropped with them."""
        limit = self._num_tokens // KEPT_ROWS_PART
        if self.num_kept_rows <= limit:
            return
        idle = [u for u in self.units.values() if u.geometry.num_rows and self._is_idle(u) and not u.names]
        for unit in sorted(idle, key=lambda u: u.last_use):
            self.discard(unit.key)
            if self.num_kept_rows <= limit:
                return

    def _forget_oldest_unnamed(self) -> None:
        """Units too short to fill a block are not reclaimed for blocks: bound their number."""
        idle = [u for u in self.units.values() if self._is_idle(u) and not u.names]
        if idle:
            self._evict(min(idle, key=lambda u: u.last_use))
