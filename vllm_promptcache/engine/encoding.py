"""The life of an encoding: from the request that computes a unit's states to their being there.

            begin                allocate                 finish               over
    (absent) ---> QUEUED ------------------> RUNNING ------------> WRITTEN ------------> (resident)
                    ^  \\                     /   \\                 /
                    |   \\____ cancel _______/     \\__ interrupt __/
                    |         (absent)                   |
                    +------------------------------------+

QUEUED: a request of the scheduler's own waits in vLLM's queue; the unit has no blocks.
RUNNING: the request has its table and the unit its blocks; chunk by chunk the workers write its states.
WRITTEN: the step that is being scheduled writes the last of them. The unit is resident and others may be
admitted on it in the same step; the encoding uses it until that step is on its way.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from vllm_promptcache.blocks.unit_key import WHOLE
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.composed_requests import ComposedRequests
from vllm_promptcache.engine.composing import Composing
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import StoredUnit

# What one request computes of small units at most: whoever needs the first of them waits for all.
MAX_TOKENS_TOGETHER = 512


class Stage(enum.Enum):
    """Where an encoding is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    WRITTEN = "written"


@dataclass(eq=False)
class Encoding:
    """The encoding of a unit by one request, or of small units each of which sees those before it.

    ``composed`` is None until it is known which units it is of. ``is_background`` says that no request waits
    for it.
    """

    units: list[StoredUnit]
    is_background: bool
    composed: ComposedRequest | None = None
    stage: Stage = Stage.QUEUED

    @property
    def request(self) -> Request:
        """The request that computes the states."""
        assert self.composed is not None
        return self.composed.request

    def takes(self, unit: StoredUnit) -> bool:
        """Whether the request may compute one more unit behind those that it computes.

        That is exact where one causal pass shows each token what it is to see: where the unit sees what the
        last one sees, and the last one, of which every token is kept and stands before its own. It costs no
        more than the unit alone where those before it fill no block: then encoding the unit alone takes
        their rows into as many blocks. States that are moved on their way are computed alone.
        """
        last = self.units[-1]
        num_tokens = sum(len(u.text.kept) for u in self.units) + len(unit.text.kept)
        return (
            self.composed is None
            and num_tokens <= MAX_TOKENS_TOGETHER
            and last.key.part == WHOLE
            and not last.geometry.num_blocks
            and len(unit.context) == len(last.context) + 1
            and unit.context[-1] == last.key
            and all(u.origin == u.key.position for u in (last, unit))
            and bool(last.text.kept.all())
            and last.geometry.position_ids[-1] < unit.geometry.position_ids[0]
            and unit.context[:-1] == last.context
        )


class Queue(Protocol):
    """vLLM's queue, as far as encodings need it."""

    def enqueue(self, requests: Sequence[Request], before: Request | None) -> None:
        """Queue new requests of the scheduler's own, just before one that waits, or behind all."""

    def move(self, request: Request, before: Request) -> None:
        """Put a request of the scheduler's own that waits just before another."""

    def comes_before(self, request: Request, other: Request) -> bool:
        """Whether a request goes before another of the scheduler's own, as far as the queue says."""

    def withdraw(self, request: Request) -> None:
        """End a request of the scheduler's own, wherever it is."""


class Encodings:
    """All encodings, by unit, and those that no request waits for. ``began`` is called with each unit."""

    def __init__(self, store: ModuleStore, requests: ComposedRequests, composing: Composing, queue: Queue):
        self.by_unit: dict[StoredUnit, Encoding] = {}
        self.background: dict[Encoding, None] = {}
        self._resident = store.resident
        self._known = store.known
        self._requests = requests
        self._composing = composing
        self._queue = queue
        self._numbers = itertools.count()
        self.began: Callable[[StoredUnit], None] = _ignore

    def offers(self, unit: StoredUnit) -> bool:
        """See ``Provider``: every unit can be encoded."""
        return True

    def begin(
        self,
        unit: StoredUnit,
        requester: ComposedRequest | None,
        queued: list[Encoding],
        provide: Callable[[StoredUnit], None],
    ) -> None:
        """See ``Provider``: absent to QUEUED. What is missing of the unit's context is provided first."""
        self._resident.begin(unit)
        self._known.hold(unit.key, {})
        self.began(unit)
        if requester is not None:
            requester.encoded.add(unit.key)
        encoding = self._last_that_takes(unit)
        if encoding is None:
            for key in unit.context:
                provide(self._known[key])
            encoding = self._last_that_takes(unit)
        if encoding is None:
            encoding = Encoding([], requester is None)
            queued.append(encoding)
        encoding.units.append(unit)
        self.by_unit[unit] = encoding

    def _last_that_takes(self, unit: StoredUnit) -> Encoding | None:
        """The encoding of what a unit sees last, if that can compute the unit as well."""
        last = self._known[unit.context[-1]] if unit.context else None
        encoding = self.by_unit.get(last) if last is not None else None
        if encoding is None or not encoding.takes(unit):
            return None
        # A window of the first one reaches back farther than the last one's: not in so many runs.
        first, positions = encoding.units[0].geometry.position_ids[0], unit.geometry.position_ids
        num_tokens = sum(len(u.text.kept) for u in (*encoding.units, unit))
        is_one_run = positions[-1] + 1 - first == num_tokens
        return encoding if is_one_run or self._known.window <= 1 else None

    def compose(self, queued: Iterable[Encoding], requester: ComposedRequest | None) -> list[Request]:
        """The requests of encodings that were begun for a request, or for none, contexts first."""
        for encoding in queued:
            request_id = f"prompt-cache-encoding-{next(self._numbers):012}"
            composed = self._composing.encoding_of(encoding.units, requester, request_id)
            encoding.composed, composed.encoding = composed, encoding
            self._requests.add(composed)
            self._requests.unserved.pop(request_id, None)
            if encoding.is_background:
                self.background[encoding] = None
        return [encoding.request for encoding in queued]

    def join(self, unit: StoredUnit, requester: ComposedRequest) -> None:
        """See ``Provider``: what is still queued for less urgent ones goes before the requester."""
        encoding = self.by_unit.get(unit)
        if encoding is None or encoding.composed is None:
            return
        was_background, encoding.is_background = encoding.is_background, False
        self.background.pop(encoding, None)
        if encoding.stage is not Stage.QUEUED:
            return
        if was_background or self._queue.comes_before(requester.request, encoding.request):
            for key in encoding.composed.missing:
                self.join(self._known[key], requester)
            encoding.composed.requester_id = requester.request.request_id
            self._queue.move(encoding.request, requester.request)

    def allocate(self, encoding: Encoding, own_blocks: Sequence[KVCacheBlock]) -> None:
        """QUEUED to RUNNING: its request has its table, with so many blocks of its own. A unit's blocks are
        the first of them if it is encoded in place; else they are free, and taken now."""
        assert encoding.stage is Stage.QUEUED
        for unit in encoding.units:
            in_place = own_blocks[: unit.geometry.num_blocks] if unit.footprint.is_in_place else None
            self._resident.allocate(unit, in_place)
        encoding.stage = Stage.RUNNING

    def finish(self, encoding: Encoding) -> None:
        """RUNNING to WRITTEN: the step that is being scheduled is its last."""
        assert encoding.stage is Stage.RUNNING
        for unit in encoding.units:
            self._resident.finish(unit)
        encoding.stage = Stage.WRITTEN

    def over(self, encoding: Encoding) -> None:
        """WRITTEN to resident: the last step is on its way, and the request has nothing to do with its
        units any more, which may go and be encoded by another before that step's output is here."""
        assert encoding.stage is Stage.WRITTEN
        self._forget(encoding)
        for unit in encoding.units:
            self._resident.end_use((unit.key,))
            self._known.release(unit.key)

    def interrupt(self, encoding: Encoding) -> None:
        """RUNNING or WRITTEN to QUEUED: its request lost its table, and will be scheduled again."""
        assert encoding.stage is not Stage.QUEUED
        for unit in reversed(encoding.units):
            self._resident.take_back(unit)
        encoding.stage = Stage.QUEUED

    def cancel(self, encoding: Encoding) -> None:
        """To absent, from anywhere: its request has ended without having computed all states."""
        if encoding.stage is not Stage.QUEUED:
            self.interrupt(encoding)
        self._forget(encoding)
        for unit in reversed(encoding.units):
            self._resident.give_up(unit)
            self._known.release(unit.key)

    def withdraw(self, unit: StoredUnit) -> None:
        """See ``Provider``: end the encoding of a unit that nobody wants, if it is of none that is wanted.
        Its context may follow."""
        encoding = self.by_unit.get(unit)
        if encoding is not None and not any(other.is_wanted for other in encoding.units):
            self._queue.withdraw(encoding.request)

    def _forget(self, encoding: Encoding) -> None:
        for unit in encoding.units:
            del self.by_unit[unit]
        self.background.pop(encoding, None)
        assert encoding.composed is not None
        encoding.composed.encoding = None


def _ignore(unit: StoredUnit) -> None:
    """Nobody asks."""
