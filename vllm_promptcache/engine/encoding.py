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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.request import Request

from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.composed_requests import ComposedRequests
from vllm_promptcache.engine.composing import Composing
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import StoredUnit


class Stage(enum.Enum):
    """Where an encoding is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    WRITTEN = "written"


@dataclass(eq=False)
class Encoding:
    """One unit's encoding. ``is_background`` says that no request waits for it."""

    unit: StoredUnit
    composed: ComposedRequest
    is_background: bool
    stage: Stage = Stage.QUEUED

    @property
    def request(self) -> Request:
        """The request that computes the states."""
        return self.composed.request


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
    """All encodings, by unit. ``began`` is called with the unit of each when it is queued."""

    def __init__(self, store: ModuleStore, requests: ComposedRequests, composing: Composing, queue: Queue):
        self.by_unit: dict[StoredUnit, Encoding] = {}
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
        queued: list[Request],
        provide: Callable[[StoredUnit], None],
    ) -> None:
        """See ``Provider``: absent to QUEUED. What is missing of the unit's context is provided first."""
        self._resident.begin(unit)
        self._known.hold(unit.key, {})
        self.began(unit)
        if requester is not None:
            requester.encoded.add(unit.key)
        request_id = f"prompt-cache-encoding-{next(self._numbers):012}"
        composed = self._composing.encoding_of(unit, requester, request_id)
        composed.encoding = self.by_unit[unit] = Encoding(unit, composed, requester is None)
        self._requests.add(composed)
        self._requests.unserved.pop(request_id, None)
        for key in list(composed.missing):
            provide(self._known[key])
        queued.append(composed.request)

    def join(self, unit: StoredUnit, requester: ComposedRequest) -> None:
        """See ``Provider``: what is still queued for less urgent ones goes before the requester."""
        encoding = self.by_unit.get(unit)
        if encoding is None:
            return
        was_background, encoding.is_background = encoding.is_background, False
        if encoding.stage is not Stage.QUEUED:
            return
        if was_background or self._queue.comes_before(requester.request, encoding.request):
            for key in encoding.composed.missing:
                self.join(self._known[key], requester)
            encoding.composed.requester_id = requester.request.request_id
            self._queue.move(encoding.request, requester.request)

    def allocate(self, encoding: Encoding, own_blocks: Sequence[KVCacheBlock]) -> None:
        """QUEUED to RUNNING: its request has its table, with so many blocks of its own. The unit's blocks are
        the first of them if it is encoded in place; else they are free, and taken now."""
        assert encoding.stage is Stage.QUEUED
        unit = encoding.unit
        in_place = own_blocks[: unit.geometry.num_blocks] if unit.footprint.is_in_place else None
        self._resident.allocate(unit, in_place)
        encoding.stage = Stage.RUNNING

    def finish(self, encoding: Encoding) -> None:
        """RUNNING to WRITTEN: the step that is being scheduled is its last."""
        assert encoding.stage is Stage.RUNNING
        self._resident.finish(encoding.unit)
        encoding.stage = Stage.WRITTEN

    def over(self, encoding: Encoding) -> None:
        """WRITTEN to resident: the last step is on its way, and the request has nothing to do with its
        unit any more, which may go and be encoded by another before that step's output is here."""
        assert encoding.stage is Stage.WRITTEN
        self._forget(encoding)
        self._resident.end_use((encoding.unit.key,))
        self._known.release(encoding.unit.key)

    def interrupt(self, encoding: Encoding) -> None:
        """RUNNING or WRITTEN to QUEUED: its request lost its table, and will be scheduled again."""
        assert encoding.stage is not Stage.QUEUED
        self._resident.take_back(encoding.unit)
        encoding.stage = Stage.QUEUED

    def cancel(self, encoding: Encoding) -> None:
        """To absent, from anywhere: its request has ended without having computed all states."""
        if encoding.stage is not Stage.QUEUED:
            self.interrupt(encoding)
        self._forget(encoding)
        self._resident.give_up(encoding.unit)
        self._known.release(encoding.unit.key)

    def withdraw(self, unit: StoredUnit) -> None:
        """See ``Provider``: end the encoding of a unit that nobody wants. Its context may follow."""
        encoding = self.by_unit.get(unit)
        if encoding is not None:
            self._queue.withdraw(encoding.request)

    def _forget(self, encoding: Encoding) -> None:
        del self.by_unit[encoding.unit]
        encoding.composed.encoding = None


def _ignore(unit: StoredUnit) -> None:
    """Nobody asks."""
