"""How units come to be resident: one decision, in one place, among those who can provide their states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from vllm.v1.request import Request

from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.composed_requests import ComposedRequests
from vllm_promptcache.engine.encoding import Encoding, Encodings, Queue
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit


class Provider(Protocol):
    """One way in which a unit's states come to be there.

    It begins with ``ResidentUnits.begin`` and ends with its ``finish``, or its ``give_up``.
    """

    def offers(self, unit: StoredUnit) -> bool:
        """Whether it can provide the states of an absent unit."""

    def begin(
        self,
        unit: StoredUnit,
        requester: ComposedRequest | None,
        queued: list[Encoding],
        provide: Callable[[StoredUnit], None],
    ) -> None:
        """Begin to provide an absent unit, for a request, or for none in the background.

        ``queued`` gains the encodings that are to be scheduled for it, in order; one that is there may take
        the unit as well. ``provide`` sees to a unit that is needed first.
        """

    def join(self, unit: StoredUnit, requester: ComposedRequest) -> None:
        """One more request waits for a unit that is being provided."""

    def withdraw(self, unit: StoredUnit) -> None:
        """Nobody wants a unit any more that is being provided."""


class Residence:
    """Sees to it that units become resident which somebody wants, and that nothing else does.

    At most ``max_background`` are made resident at once that no request waits for.
    ``providers`` are asked in order; the last one can provide any unit, by encoding it.
    """

    def __init__(
        self,
        store: ModuleStore,
        requests: ComposedRequests,
        encodings: Encodings,
        queue: Queue,
        max_background: int,
    ):
        self.providers: list[Provider] = [encodings]
        self._store = store
        self._requests = requests
        self._encodings = encodings
        self._queue = queue
        self._max_background = max_background

    def serve(self, composed: ComposedRequest) -> None:
        """Have what a waiting request misses made resident, just before it is its turn: whoever finds no
        blocks for that must not keep back a request that came earlier, and might be holding them."""
        self._requests.unserved.pop(composed.request.request_id, None)
        self._make_resident(list(composed.missing), composed)

    def serve_waiting(self, waiting: Iterable[Request]) -> None:
        """Serve all who may miss something that nobody provides, in the order of the queue: what several
        need is encoded where the first of them stands. Then look after the background."""
        while (unit := self._requests.take_abandoned()) is not None:
            for provider in self.providers:
                provider.withdraw(unit)
        unserved = self._requests.unserved
        if unserved:
            for request in [request for request in waiting if request.request_id in unserved]:
                self.serve(self._requests.by_id[request.request_id])
        self.start_background()

    def start_background(self) -> None:
        """Begin to provide units that nobody waits for: few at once, so that others get in between."""
        queued: list[Encoding] = []
        num_units = len(self._encodings.background)
        while num_units < self._max_background and (unit := self._store.backlog.next()) is not None:
            num_encodings = len(queued)
            self._provide(unit, None, queued)
            # A unit that is computed along with others is as none; one that is loaded counts.
            num_units += unit not in self._encodings.by_unit or len(queued) > num_encodings
        self._enqueue(queued, None)

    def reconsider(self, unit: StoredUnit) -> None:
        """Somebody wants a unit no more: what is being done for it may end, at the next step."""
        self._requests.reconsider(unit)

    @property
    def background(self) -> Sequence[Request]:
        """The requests that no other request waits for."""
        return [encoding.request for encoding in self._encodings.background]

    def _make_resident(self, keys: Iterable[UnitKey], requester: ComposedRequest) -> None:
        queued: list[Encoding] = []
        for key in keys:
            self._provide(self._store.known[key], requester, queued)
        self._enqueue(queued, requester)

    def _enqueue(self, queued: Sequence[Encoding], requester: ComposedRequest | None) -> None:
        if queued:
            requests = self._encodings.compose(queued, requester)
            self._queue.enqueue(requests, requester.request if requester is not None else None)

    def _provide(self, unit: StoredUnit, requester: ComposedRequest | None, queued: list[Encoding]) -> None:
        if unit.residency is Residency.ENCODING and requester is not None:
            for provider in self.providers:
                provider.join(unit, requester)
        if unit.residency is not Residency.ABSENT:
            return
        provider = next(provider for provider in self.providers if provider.offers(unit))
        provider.begin(unit, requester, queued, lambda needed: self._provide(needed, requester, queued))
