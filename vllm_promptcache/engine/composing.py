"""Requests to composed requests: what one carries, or what encodes a unit, put on units and blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from vllm_promptcache import compat
from vllm_promptcache.blocks.checks import check_text
from vllm_promptcache.blocks.composition import Composition, compose_encoding
from vllm_promptcache.blocks.heads import take_from_heads
from vllm_promptcache.blocks.slot_layout import SlotLayout, lay_out_slots
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.blocks.wire import (
    composition_from_wire,
    keys_from_wire,
    ranges_from_wire,
    texts_from_wire,
)
from vllm_promptcache.engine.adapters import Adapters
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.pins import NoRoomError
from vllm_promptcache.engine.private_hasher import PlainHash, PrivateHasher
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.engine.unit_catalog import UnitCatalog

# With priorities, behind whatever a client asks for.
BACKGROUND_PRIORITY = 1 << 30


class Composing:
    """Composes requests over the units of a store; each request holds its units from then on.

    ``plain_hash`` is given where private blocks enter the prefix cache.
    """

    def __init__(
        self,
        store: ModuleStore,
        catalog: UnitCatalog,
        max_model_len: int,
        vocabulary: int,
        plain_hash: PlainHash | None,
    ):
        self._store = store
        self._catalog = catalog
        self._max_model_len = max_model_len
        self._vocabulary = vocabulary
        self._plain_hash = plain_hash
        self.adapters = Adapters()

    def compose(self, request: Request, wire: Any) -> ComposedRequest:
        """The request as what it carries says; its prompt is put in the order of its block table.

        Where its units could never be resident together it is composed of none, and all is computed.

        Raises:
            LookupError, TypeError, ValueError: it cannot be composed so; nothing is held then.
        """
        if not isinstance(wire, Mapping):
            raise TypeError(f"a composition is a mapping, not {type(wire).__name__}")
        if request.sampling_params is not None and request.sampling_params.prompt_logprobs is not None:
            raise ValueError("prompt log-probabilities need every prompt token computed: not with reuse")
        adapter, tenant = self.adapters.of(request.lora_request), request.cache_salt
        keys = [self._store.known.shared(key) for key in keys_from_wire(wire["units"], adapter, tenant)]
        unknown = [key.digest for key in keys if key not in self._store.known]
        repaired = ranges_from_wire(wire.get("repaired", ()))
        given = texts_from_wire(wire.get("texts", {})) if unknown else {}
        for text in given.values():
            check_text(text, self._max_model_len, self._vocabulary)
        texts = self._catalog.texts_of(unknown, given)
        composition = composition_from_wire(wire, keys)
        held: dict[UnitKey, StoredUnit] = {}
        try:
            for key in composition.unit_keys:
                held[key] = self._store.known.hold(key, texts)
            if repaired:
                composition = self._take_from_heads(composition, held)
            slot_layout = self._slot_layout(composition, self._max_model_len)
            has_room = self._has_room(slot_layout, held)
            if not has_room:
                composition = composition.without_reuse({k: u.geometry.position_ids for k, u in held.items()})
                slot_layout, repaired = self._slot_layout(composition, self._max_model_len), ()
                while held:
                    self._store.known.release(held.popitem()[0])
            # Positions run out before tokens do: there generation ends, with reason "length".
            request.max_tokens = min(request.max_tokens, self._max_model_len - slot_layout.next_position)
            hasher = None
            if self._plain_hash is not None:
                hasher = PrivateHasher(composition, slot_layout, adapter, tenant, self._plain_hash)
            _reorder(request, composition, hasher)
        except (LookupError, TypeError, ValueError):
            for key in held:
                self._store.known.release(key)
            raise
        no_room = not has_room or bool(wire.get("no_room"))
        num_plain = slot_layout.num_shared_blocks + (hasher.num_plain_blocks if hasher is not None else 0)
        return ComposedRequest(
            request,
            composition,
            slot_layout,
            repaired_ranges=repaired,
            no_room=no_room,
            num_plain_blocks=num_plain,
        )

    def _has_room(self, slot_layout: SlotLayout, held: Mapping[UnitKey, StoredUnit]) -> bool:
        """Whether a request could run on its units. What vLLM runs as a plain prompt runs here too: without
        them, if need be."""
        num_blocks = -(-slot_layout.num_prompt_tokens // self._store.block_size)
        units = self._store.known.closure(held.values())
        try:
            self._store.pins.check_room(units, num_blocks - slot_layout.num_shared_blocks)
        except NoRoomError:
            return False
        return True

    def encoding_of(
        self, units: Sequence[StoredUnit], requester: ComposedRequest | None, request_id: str
    ) -> ComposedRequest:
        """The request that encodes a unit, or several that see each other, itself composed of the context of
        the first.

        It goes just before its requester where the queue is ordered by priorities, and with none last.
        """
        context = {key: self._store.known[key].text for key in units[0].context}
        composition, token_ids = compose_encoding([(unit.text, unit.origin) for unit in units], context)
        waiting = requester.request if requester is not None else None
        priority, arrival_time = just_before(waiting) if waiting is not None else (BACKGROUND_PRIORITY, None)
        request = Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            sampling_params=SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
            pooling_params=None,
            client_index=waiting.client_index if waiting is not None else 0,
            arrival_time=arrival_time,
            lora_request=waiting.lora_request if waiting is not None else None,
            priority=priority,
        )
        for key in composition.unit_keys:
            self._store.known.hold(key, {})
        # Its one generated token is thrown away and needs no position.
        slot_layout = self._slot_layout(composition, self._max_model_len + 1)
        _reorder(request, composition, None)
        requester_id = waiting.request_id if waiting is not None else None
        return ComposedRequest(request, composition, slot_layout, is_encoding=True, requester_id=requester_id)

    def _slot_layout(self, composition: Composition, num_positions: int) -> SlotLayout:
        geometries = {key: self._store.known[key].geometry for key in composition.unit_keys}
        return lay_out_slots(
            composition, geometries, self._store.block_size, num_positions, self._store.window
        )

    def _take_from_heads(self, composition: Composition, held: dict[UnitKey, StoredUnit]) -> Composition:
        """The composition with heads where ranges begin inside a block; ``held`` are its units then."""

        def head_of(key: UnitKey, end: int) -> UnitKey:
            head = key.head(end)
            if head not in held:
                held[head] = self._store.known.hold_head(key, end)
            return head

        geometries = {key: unit.geometry for key, unit in held.items()}
        taken = take_from_heads(composition, geometries, head_of)
        for key in held.keys() - set(taken.unit_keys):
            del held[key]
            self._store.known.release(key)
        return taken


def just_before(request: Request) -> tuple[int, float]:
    """Priority and time of arrival of what a queue that is ordered by them has just before a request."""
    return request.priority, math.nextafter(request.arrival_time, 0)


def _reorder(request: Request, composition: Composition, hasher: PrivateHasher | None) -> None:
    token_ids = composition.cached_first(request.prompt_token_ids or [])
    compat.reorder_prompt(request, token_ids, hasher)
