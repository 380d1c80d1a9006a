"""The scheduler: composed requests wait for their modules, which it encodes on demand, once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache import compat
from vllm_promptcache.blocks.checks import check_text
from vllm_promptcache.blocks.composition import Composition, compose_encoding
from vllm_promptcache.blocks.heads import take_from_heads, whole_units
from vllm_promptcache.blocks.seats import Seats, edge_rows_from, take_seats
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.blocks.wire import (
    EXTRA_ARG,
    composition_from_wire,
    keys_from_wire,
    ranges_from_wire,
    texts_from_wire,
    wire_identity,
)
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.engine.block_manager import PromptCacheBlockManager
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.messages import Capture, Seating, StepMessage
from vllm_promptcache.engine.module_control import ModuleControl
from vllm_promptcache.engine.module_store import Residency, StoredUnit
from vllm_promptcache.engine.stream_hasher import StreamHasher
from vllm_promptcache.engine.unit_catalog import UnitCatalog

logger = init_logger(__name__)

if TYPE_CHECKING:
    Base = Scheduler
else:
    Base = object


class PromptCacheScheduling(Base):
    """Mixin over vLLM's schedulers.

    A unit is encoded by an ordinary request of the scheduler's own, itself composed of the unit's
    context, whose new tokens' states the workers also write into the unit's blocks. Composed requests
    stay in the waiting queue until their units are resident.
    """

    kv_cache_manager: PromptCacheBlockManager

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        config = PromptCacheConfig.from_vllm_config(vllm_config)
        with compat.kv_cache_manager_class(PromptCacheBlockManager):
            super().__init__(vllm_config, *args, **kwargs)
        compat.check_kv_cache(self.kv_cache_manager)
        self.kv_cache_manager.open_store(config.pin_fraction)
        self.store = self.kv_cache_manager.store
        self.composed = self.kv_cache_manager.composed
        self.catalog = UnitCatalog()
        self.control = ModuleControl(
            self.store,
            self.catalog,
            self.start_encoding,
            self.check_integrity,
            config.repair.link_tokens,
        )
        self._encoding_ids = itertools.count()
        caching = vllm_config.cache_config.enable_prefix_caching
        self._finds_history = bool(caching) and self.hash_block_size == self.store.block_size
        compat.install_engine_utility()
        compat.hash_blocks_later(EXTRA_ARG)

    # -- requests --------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request; one that carries a composition is seated on units and starts their encoding."""
        params = request.sampling_params
        wire = params.extra_args.get(EXTRA_ARG) if params is not None and params.extra_args else None
        if wire is None or request.request_id in self.requests:
            super().add_request(request)
            return
        try:
            composed = self._compose(request, wire)
        except (LookupError, TypeError, ValueError):
            logger.exception("Request %s cannot be composed", request.request_id)
            super().add_request(request)
            self.grammar_compile_error_reqs.add(request.request_id)
            return
        self._admit(request, composed)
        super().add_request(request)
        self._encode_missing((composed,))

    def _compose(self, request: Request, wire: Any) -> ComposedRequest:
        if not isinstance(wire, Mapping):
            raise TypeError(f"a composition is a mapping, not {type(wire).__name__}")
        if request.sampling_params is not None and request.sampling_params.prompt_logprobs is not None:
            raise ValueError("prompt log-probabilities need every prompt token computed: not with reuse")
        adapter, tenant = adapter_of(request), request.cache_salt
        keys = keys_from_wire(wire["units"], adapter, tenant)
        unknown = [key.digest for key in keys if key not in self.store.units]
        repaired = ranges_from_wire(wire.get("repaired", ()))
        given = texts_from_wire(wire.get("texts", {})) if unknown else {}
        for text in given.values():
            check_text(text, self.max_model_len, self.vllm_config.model_config.get_vocab_size())
        texts = self.catalog.texts_of(unknown, given)
        composition = composition_from_wire(wire, keys)
        named: dict[UnitKey, StoredUnit] = {}
        try:
            for key in composition.unit_keys:
                named[key] = self.store.name(key, texts)
            if repaired:
                composition = self._take_from_heads(composition, named)
            units = {key: unit.geometry for key, unit in named.items()}
            seats = take_seats(composition, units, self.store.block_size, self.max_model_len)
            num_blocks = -(-seats.num_prompt_tokens // self.store.block_size)
            self.store.check_room(named.values(), num_blocks - seats.num_shared_blocks)
            # Positions run out before tokens do: there generation ends, with reason "length".
            request.max_tokens = min(request.max_tokens, self.max_model_len - seats.next_position)
            seed = wire_identity(wire, keys, adapter, tenant) if self._finds_history else b""
            hasher = StreamHasher(seats, seed) if seed else None
            history = max(int(wire.get("history", 0)), 0)
            composed = self._seated(request, composition, seats, hasher=hasher, num_history_tokens=history)
            composed.repaired_ranges = repaired
            return composed
        except (LookupError, TypeError, ValueError):
            for key in named:
                self.store.unname(key)
            raise

    def _take_from_heads(self, composition: Composition, named: dict[UnitKey, StoredUnit]) -> Composition:
        """The composition with heads where ranges begin inside a block; ``named`` are its units then."""

        def head_of(key: UnitKey, end: int) -> UnitKey:
            head = key.head(end)
            if head not in named:
                named[head] = self.store.name_head(key, end)
            return head

        geometries = {key: unit.geometry for key, unit in named.items()}
        taken = take_from_heads(composition, geometries, head_of)
        for key in named.keys() - set(taken.unit_keys):
            del named[key]
            self.store.unname(key)
        return taken

    def _seated(
        self,
        request: Request,
        composition: Composition,
        seats: Seats,
        *,
        encodes: UnitKey | None = None,
        asker: Request | None = None,
        hasher: StreamHasher | None = None,
        num_history_tokens: int = 0,
    ) -> ComposedRequest:
        token_ids = composition.cached_first(request.prompt_token_ids or [])
        compat.reorder_prompt(request, token_ids, hasher)
        return ComposedRequest(
            request,
            composition,
            seats,
            encodes,
            is_encoding=encodes is not None,
            asker_id=asker.request_id if asker is not None else None,
            num_encoded_units=len(whole_units(self.store.missing(composition))),
            num_history_tokens=min(num_history_tokens, len(seats.offsets) - 1),
        )

    def _admit(self, request: Request, composed: ComposedRequest) -> None:
        self.composed[request.request_id] = composed

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        kv_params, ec_params = super()._free_request(request, *args, **kwargs)
        composed = self.composed.pop(request.request_id, None)
        if composed is None:
            return kv_params, ec_params
        encodes = composed.encodes
        if encodes is not None:
            if self.store.units[encodes].residency is Residency.ENCODING:
                self.store.interrupt_encoding(encodes, given_up=True)
            self.store.unname(encodes)
        for key in composed.composition.unit_keys:
            self.store.unname(key)
        return {**(kv_params or {}), EXTRA_ARG: composed.report}, ec_params

    # -- encoding --------------------------------------------------------------------------------

    def _waiting_in_order(self) -> list[ComposedRequest]:
        """Composed requests that miss units, in the order in which they will be tried: what several need is
        encoded where the first of them stands."""
        missing = {
            request_id
            for request_id, composed in self.composed.items()
            if not composed.seated and self.store.missing(composed.composition)
        }
        return (
            [self.composed[r.request_id] for r in self.waiting if r.request_id in missing] if missing else []
        )

    def _encode_missing(self, waiting: Iterable[ComposedRequest]) -> None:
        """Queue one encoding request for each unit that waiting requests need and nobody encodes.

        It takes the place in the queue just before who asked: one that finds no blocks must not keep
        back a request that came earlier, and might be holding them.
        """
        for composed in waiting:
            queued: list[Request] = []
            for key in self.store.missing(composed.composition):
                self._encode(key, composed.request, queued)
            if queued:
                compat.queue_before(self.waiting, composed.request, queued)

    def _encode(self, key: UnitKey, asker: Request | None, queued: list[Request]) -> None:
        unit = self.store.units[key]
        if unit.residency is Residency.ENCODING and asker is not None:
            self._hasten(key, asker)
        if unit.residency is not Residency.ABSENT:
            return
        for seen in unit.context:
            self._encode(seen, asker, queued)
        self.store.begin_encoding(key)
        request = self._encoding_request(unit, asker)
        self.requests[request.request_id] = request
        queued.append(request)

    def _hasten(self, key: UnitKey, asker: Request) -> None:
        """Have a unit that is still to be encoded for a less urgent request encoded before a new asker,
        and what is encoded in turn for it."""
        if self.policy is not SchedulingPolicy.PRIORITY:
            return
        encoder = next((c for c in self.composed.values() if c.encodes == key and not c.seated), None)
        if encoder is None or not asker < encoder.request:
            return
        self.waiting.remove_request(encoder.request)
        encoder.asker_id = asker.request_id
        encoder.request.priority, encoder.request.arrival_time = _just_before(asker)
        self.waiting.add_request(encoder.request)
        for context in self.store.missing(encoder.composition):
            self._hasten(context, asker)

    def _encoding_request(self, unit: StoredUnit, asker: Request | None) -> Request:
        context = {key: self.store.units[key].text for key in unit.context}
        composition, token_ids = compose_encoding(unit.text, unit.key.position, context)
        priority, arrival_time = _just_before(asker) if asker is not None else (0, None)
        request = Request(
            request_id=f"prompt-cache-encoding-{next(self._encoding_ids):012}",
            prompt_token_ids=token_ids,
            sampling_params=SamplingParams(max_tokens=1, temperature=0.0, detokenize=False),
            pooling_params=None,
            client_index=asker.client_index if asker is not None else 0,
            arrival_time=arrival_time,
            lora_request=asker.lora_request if asker is not None else None,
            priority=priority,
        )
        self.store.name(unit.key, {})
        units = {key: self.store.name(key, {}).geometry for key in composition.unit_keys}
        seats = take_seats(composition, units, self.store.block_size, self.max_model_len + 1)
        self._admit(request, self._seated(request, composition, seats, encodes=unit.key, asker=asker))
        return request

    # -- steps -----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step and tell the workers who was seated in it."""
        if self.composed:
            self._encode_missing(self._waiting_in_order())
        self.kv_cache_manager.tried.clear()
        output = super().schedule(*args, **kwargs)
        if not self.composed and not self.store.dropped:
            return output
        message = StepMessage(self._take_seatings(), self.store.take_dropped())
        if message:
            compat.attach_message(output, message)
        for request_id in output.num_scheduled_tokens:
            composed = self.composed.get(request_id)
            if composed is not None and composed.is_encoding:
                self._finish_if_scheduled(composed)
        return output

    def _finish_if_scheduled(self, composed: ComposedRequest) -> None:
        """Once its last step is scheduled, an encoding request has nothing to do with its unit any more.

        The unit may be dropped and encoded by another request before that step's output is here.
        """
        key, request = composed.encodes, composed.request
        if key is not None and request.num_computed_tokens >= request.num_prompt_tokens:
            composed.encodes = None
            self.store.release((key,))
            self.store.unname(key)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; an encoding request whose last step was scheduled has nothing to come back for."""
        super()._preempt_request(request, *args, **kwargs)
        composed = self.composed.get(request.request_id)
        if composed is not None and composed.is_encoding and composed.encodes is None:
            self.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    def _take_seatings(self) -> dict[str, Seating]:
        seated, self.kv_cache_manager.newly_seated = self.kv_cache_manager.newly_seated, []
        return {request_id: self._seating(self.composed[request_id]) for request_id in seated}

    def _seating(self, composed: ComposedRequest) -> Seating:
        offset = len(composed.found) * composed.seats.block_size
        edge_rows = edge_rows_from(composed.seats, offset)
        if composed.encodes is None:
            return Seating(composed.seats, edge_rows)
        unit = self.store.units[composed.encodes]
        slots = compat.physical_slots(unit.geometry.slots, unit.blocks, self.store.block_size)
        capture = Capture(unit.key, slots, unit.geometry.rows, unit.geometry.num_rows)
        return Seating(composed.seats, edge_rows, capture)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        if request.request_id in self.grammar_compile_error_reqs:
            return False  # refused: the step's output says so
        composed = self.composed.get(request.request_id)
        if composed is not None:
            self.kv_cache_manager.tried.append(composed)
            if self.store.missing(composed.composition):
                return False
        return super()._handle_blocked_waiting_request(request)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM's, without the outputs of encoding requests, which nobody asked for, and with a report
        in the first output of each composed one: the front end may end a request at a stop string."""
        composed = self.composed
        encoding = {
            request_id
            for request_id in (scheduler_output.num_scheduled_tokens if composed else ())
            if request_id in composed and composed[request_id].is_encoding
        }
        any_composed = bool(composed)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if any_composed:
            for per_client in outputs.values():
                per_client.outputs = [o for o in per_client.outputs if o.request_id not in encoding]
                for output in per_client.outputs:
                    self._report_once(output)
        return outputs

    def _report_once(self, output: EngineCoreOutput) -> None:
        composed = self.composed.get(output.request_id)
        if composed is not None and not composed.reported:
            composed.reported = True
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), EXTRA_ARG: composed.report}

    def prompt_cache(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One call of the front end; see ``ModuleControl``."""
        return self.control.call(operation, payload)

    def check_integrity(self) -> None:
        """Check block accounting; see ``accounting.check_integrity``."""
        self.kv_cache_manager.check_integrity()

    def start_encoding(self, keys: Iterable[UnitKey]) -> None:
        """Queue encoding requests for units that nobody waits for yet."""
        queued: list[Request] = []
        for key in keys:
            self._encode(key, None, queued)
        for request in queued:
            self.waiting.add_request(request)


def adapter_of(request: Request) -> tuple[str, ...] | None:
    """What tells a request's LoRA adapter from others."""
    lora = request.lora_request
    # Not its number: an adapter that is loaded again in place keeps that, with other weights.
    return (lora.lora_name, lora.lora_path) if lora is not None else None


def _just_before(asker: Request) -> tuple[int, float]:
    """Priority and time of arrival of what a queue that is ordered by them has just before a request."""
    return asker.priority, math.nextafter(asker.arrival_time, 0)


class PromptCacheScheduler(PromptCacheScheduling, Scheduler):
    """vLLM's scheduler with modular reuse."""


class PromptCacheAsyncScheduler(PromptCacheScheduling, AsyncScheduler):
    """vLLM's asynchronous scheduler with modular reuse."""
