"""The units that the scheduler knows, and who holds them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from vllm_promptcache.blocks.checks import check_place
from vllm_promptcache.blocks.composition import UnitText
from vllm_promptcache.blocks.footprint import NO_CONTEXT, footprint_of
from vllm_promptcache.blocks.geometry import UnitGeometry, lay_out_unit
from vllm_promptcache.blocks.heads import head_text, lay_out_head
from vllm_promptcache.blocks.unit_key import WHOLE, UnitKey
from vllm_promptcache.engine.stored_unit import StoredUnit

Name = TypeVar("Name")


class KnownUnits:
    """Units by key. One is known while somebody holds it, or there is something to know of it.

    ``settle`` is called with a unit whenever its first holder comes or its last one goes. Where states can be
    moved, as ``is_movable`` says, a unit is encoded at home, wherever it stands. Units of which ``is_shared``
    tells are the same for all tenants.
    """

    def __init__(self, block_size: int, num_positions: int, window: int):
        self.block_size = block_size
        self.num_positions = num_positions
        self.window = window
        self.shares_blocks = window < num_positions
        self.by_key: dict[UnitKey, StoredUnit] = {}
        self.num_of_tenants = 0
        self.settle: Callable[[StoredUnit], None]
        self.is_movable: Callable[[], bool] = _never
        self.is_shared: Callable[[str], bool] = _not_shared
        self._by_digest: dict[str, dict[UnitKey, None]] = {}
        self._heads: dict[UnitKey, dict[UnitKey, None]] = {}
        self._to_release: deque[UnitKey] = deque()
        self._is_releasing = False

    def __len__(self) -> int:
        return len(self.by_key)

    def __contains__(self, key: UnitKey) -> bool:
        return key in self.by_key

    def __getitem__(self, key: UnitKey) -> StoredUnit:
        return self.by_key[key]

    def shared(self, key: UnitKey) -> UnitKey:
        """What a unit is called that a tenant asks for: without the tenant where it is shared by all."""
        if key.tenant is None or not self.is_shared(key.digest):
            return key
        return key._replace(tenant=None)

    def hold(self, key: UnitKey, texts: Mapping[str, UnitText]) -> StoredUnit:
        """Add a holder of a unit; the first one makes it known, and its context with it.

        ``texts`` are by digest.

        Raises:
            KeyError: the unit, or one of its context, is neither known nor in ``texts``.
            ValueError: it, or one of its context, cannot stand where its key says.
        """
        unit = self.by_key.get(key)
        if unit is None:
            unit = self._know_with_stems(key, texts)
        unit.holders += 1
        if unit.holders == 1 and unit.has_states:
            self.settle(unit)
        return unit

    def hold_head(self, key: UnitKey, end: int) -> StoredUnit:
        """Add a holder of the head, up to token ``end``, of a unit that is known."""
        return self.hold(key.head(end), {key.digest: head_text(self.by_key[key].text, end)})

    def release(self, key: UnitKey) -> None:
        """Remove a holder. A unit that nobody holds stays known while it has states or is pinned."""
        unit = self.by_key[key]
        unit.holders -= 1
        assert unit.holders >= 0
        if not unit.holders:
            self.settle(unit)

    @contextlib.contextmanager
    def held(self, unit: StoredUnit) -> Iterator[None]:
        """Hold a unit that is known for a ``with`` block."""
        unit.holders += 1
        try:
            yield
        finally:
            self.release(unit.key)

    def forget(self, unit: StoredUnit) -> None:
        """A unit that nobody holds and that has no states is no longer known."""
        key = unit.key
        del self.by_key[key]
        self.num_of_tenants -= key.tenant is not None
        _discard(self._by_digest, key.digest, key)
        if unit.whole is not None:
            _discard(self._heads, unit.whole, key)
        # Its context may be forgotten next, and that one's: one after the other, however many there are.
        self._to_release.extend(unit.seen)
        if not self._is_releasing:
            self._is_releasing = True
            while self._to_release:
                self.release(self._to_release.popleft())
            self._is_releasing = False

    def placements_of(self, digest: str) -> tuple[UnitKey, ...]:
        """All that is known of a unit, wherever it stands and whoever it is for."""
        return tuple(self._by_digest.get(digest, ()))

    def heads_of(self, key: UnitKey) -> tuple[UnitKey, ...]:
        """The known heads of a unit."""
        return tuple(self._heads.get(key, ()))

    def closure(self, units: Iterable[StoredUnit]) -> list[StoredUnit]:
        """Units that are known, and all that they have seen."""
        found: dict[StoredUnit, None] = {}
        pending = list(units)
        while pending:
            unit = pending.pop()
            if unit not in found:
                found[unit] = None
                pending += [self.by_key[key] for key in unit.seen]
        return list(found)

    def _know_with_stems(self, key: UnitKey, texts: Mapping[str, UnitText]) -> StoredUnit:
        """Make a unit known after its stem, that one after its own, and so on, however many there are."""
        keys = [key]
        while (text := texts[keys[-1].digest]).has_stem:
            stem = self._direct_context(keys[-1], text)[0]
            if stem in self.by_key:
                break
            keys.append(stem)
        unit: StoredUnit | None = None
        try:
            for one in reversed(keys):
                unit = self._know(one, texts[one.digest], texts)
        except (KeyError, ValueError):
            if unit is not None:
                self.forget(unit)
            raise
        assert unit is not None
        return unit

    def _direct_context(self, key: UnitKey, text: UnitText) -> tuple[UnitKey, ...]:
        keys = text.context_keys(key._replace(position=self._origin(key, text)))
        return tuple([self.shared(one) for one in keys])

    def _origin(self, key: UnitKey, text: UnitText) -> int:
        """Where a unit is encoded."""
        return text.home if text.home != key.position and self.is_movable() else key.position

    def _know(self, key: UnitKey, text: UnitText, texts: Mapping[str, UnitText]) -> StoredUnit:
        origin = self._origin(key, text)
        for position in {origin, key.position}:
            check_place(text, position, self.num_positions)
        seen = self._direct_context(key, text)
        held: list[UnitKey] = []
        try:
            for one in seen:
                held.append(self.hold(one, texts).key)
            context, context_tokens = seen, NO_CONTEXT
            if text.has_stem:
                stem = self.by_key[seen[0]]
                context, context_tokens = (*stem.context, *seen), stem.context_tokens
                moved = stem.key.position - stem.origin
                if moved:  # it holds what it has seen elsewhere
                    before = [k._replace(position=k.position + moved) for k in stem.context]
                    for one in before:
                        held.append(self.hold(one, texts).key)
                    context, seen = (*before, *seen), (*before, *seen)
        except (KeyError, ValueError):
            for one in held:
                self.release(one)
            raise
        geometry = self._lay_out(key, text)
        direct = [self.by_key[one].geometry for one in self._direct_context(key, text)]
        context_tokens = context_tokens.and_those_of(direct)
        is_moved = origin != key.position
        footprint = footprint_of(geometry, context_tokens, self.window, is_moved=is_moved)
        unit = StoredUnit(key, text, context, seen, context_tokens, geometry, footprint, origin)
        self.by_key[key] = unit
        self.num_of_tenants += key.tenant is not None
        self._by_digest.setdefault(key.digest, {})[key] = None
        if unit.whole is not None:
            self._heads.setdefault(unit.whole, {})[key] = None
        return unit

    def _lay_out(self, key: UnitKey, text: UnitText) -> UnitGeometry:
        if key.part != WHOLE:
            return lay_out_head(text, key.position, self.block_size)
        return lay_out_unit(
            text.positions + key.position,
            text.kept,
            self.block_size,
            text.breaks,
            self.window,
            in_blocks=self.shares_blocks,
        )


def _never() -> bool:
    return False


def _not_shared(digest: str) -> bool:
    return False


def _discard(of: dict[Name, dict[UnitKey, None]], name: Name, key: UnitKey) -> None:
    del of[name][key]
    if not of[name]:
        del of[name]
