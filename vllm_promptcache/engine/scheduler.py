"""The scheduler: vLLM's, in which composed requests wait for their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_promptcache import compat
from vllm_promptcache.blocks.wire import EXTRA_ARG
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.engine import models
from vllm_promptcache.engine.admission import admission_of
from vllm_promptcache.engine.block_manager import PromptCacheBlockManager
from vllm_promptcache.engine.composed_request import ComposedRequest
from vllm_promptcache.engine.composing import Composing, just_before
from vllm_promptcache.engine.encoding import Encodings, Stage
from vllm_promptcache.engine.expiry import Expiry
from vllm_promptcache.engine.keeping import Keeping
from vllm_promptcache.engine.loading import CallWorkers, Loads
from vllm_promptcache.engine.messages import StepMessage
from vllm_promptcache.engine.module_control import ModuleControl
from vllm_promptcache.engine.plain_connecting import PlainConnecting
from vllm_promptcache.engine.queue_order import fair_order
from vllm_promptcache.engine.record_settings import open_catalog
from vllm_promptcache.engine.recording import Recordings
from vllm_promptcache.engine.residence import Residence
from vllm_promptcache.engine.stored_unit import StoredUnit
from vllm_promptcache.engine.unit_catalog import UnitCatalog

logger = init_logger(__name__)

# Encoded at once though no request waits: few, so that others find slots and blocks.
MAX_BACKGROUND_UNITS = 16


class PromptCacheScheduling(PlainConnecting):
    """Mixin over vLLM's schedulers.

    A unit is encoded by an ordinary request of the scheduler's own, itself composed of the unit's
    context, whose new tokens' states the workers also write into the unit's blocks. Composed requests
    stay in the waiting queue until their units are resident. What happens to units is decided in
    ``Residence`` and ``Encodings``; here are the moments at which vLLM lets it happen.
    """

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        compat.probe("scheduler")
        config = PromptCacheConfig.from_vllm_config(vllm_config)
        with compat.kv_cache_manager_class(PromptCacheBlockManager):
            super().__init__(vllm_config, *args, **kwargs)
        manager = self.kv_cache_manager
        compat.check_kv_cache(manager)
        window = models.window_of(vllm_config.model_config)
        manager.open_store(config.pin_fraction, window, config.tenant_fraction)
        self.store, self.composed = manager.store, manager.composed
        self.catalog = UnitCatalog()
        self.store.known.is_shared = self.catalog.is_shared
        vocabulary = vllm_config.model_config.get_vocab_size()
        caches = manager.enable_caching and self.hash_block_size == self.store.block_size
        plain_hash = compat.plain_block_hash(vllm_config) if caches else None
        self.composing = Composing(self.store, self.catalog, self.max_model_len, vocabulary, plain_hash)
        self.encodings = Encodings(self.store, self.composed, self.composing, self)
        manager.encodings = self.encodings
        in_background = max(min(self.max_num_running_reqs // 4, MAX_BACKGROUND_UNITS), 1)
        self.records = open_catalog(vllm_config, self.kv_cache_config)
        self.recordings = Recordings(self.records)
        self.loads = Loads(self.store, self.recordings, self.encodings.join)
        self.encodings.began = self.recordings.plan
        self.store.known.is_movable = lambda: self.loads.is_movable
        self.residence = Residence(self.store, self.composed, self.encodings, self, in_background)
        self.residence.providers.insert(0, self.loads)
        self._module_ttl_s = config.module_ttl_s
        self._keeping = Keeping(self.store, self.loads)
        self._expiry = Expiry(self.store, self._ttl_of, self._keeping.ended)
        self.control = ModuleControl(
            self.store,
            self.catalog,
            self.residence,
            self.check_integrity,
            self.loads,
            self._expiry,
            config.repair.link_tokens,
        )
        self._stood_still = False
        compat.install_engine_utility()
        compat.notice_adapters()
        compat.introduce_workers()
        compat.hash_blocks_later(EXTRA_ARG)
        self._hide_from_connector()

    # -- requests --------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request; one that carries a composition has what it misses made resident."""
        params = request.sampling_params
        wire = params.extra_args.get(EXTRA_ARG) if params is not None and params.extra_args else None
        if wire is None or request.request_id in self.requests:
            super().add_request(request)
            return
        try:
            composed = self.composing.compose(request, wire)
        except (LookupError, TypeError, ValueError) as error:
            logger.exception("Request %s cannot be composed", request.request_id)
            super().add_request(request)
            compat.refuse(self, request.request_id, str(error))
            return
        self.composed.add(composed)
        self._keeping.keep(composed, wire.get("keeps", ()))
        self.loads.touch(composed.composition.unit_keys)
        super().add_request(request)
        self.residence.serve(composed)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        kv_params, ec_params = super()._free_request(request, *args, **kwargs)
        composed = self.composed.by_id.get(request.request_id)
        if composed is None:
            return kv_params, ec_params
        report = composed.report
        if composed.encoding is not None:
            for unit in composed.encoding.units:
                self.recordings.give_up(unit)
            self.encodings.cancel(composed.encoding)
        self.composed.remove(request.request_id)
        return {**(kv_params or {}), EXTRA_ARG: report}, ec_params

    # -- vLLM's queue, for encodings (see ``Queue``) ---------------------------------------------

    def enqueue(self, requests: Sequence[Request], before: Request | None) -> None:
        """Queue new requests of the scheduler's own, just before one that waits, or behind all."""
        self.requests.update((request.request_id, request) for request in requests)
        if before is not None:
            compat.queue_before(self.waiting, before, requests)
            return
        for request in requests:
            self.waiting.add_request(request)

    def move(self, request: Request, before: Request) -> None:
        """Put a request of the scheduler's own that waits just before another."""
        self.waiting.remove_request(request)
        request.priority, request.arrival_time = just_before(before)
        compat.queue_before(self.waiting, before, [request])

    def comes_before(self, request: Request, other: Request) -> bool:
        """Whether a request goes before another of the scheduler's own, as far as the queue says."""
        return self.policy is SchedulingPolicy.PRIORITY and request < other

    def withdraw(self, request: Request) -> None:
        """End a request of the scheduler's own, wherever it is."""
        self.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    # -- steps -----------------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Schedule a step and tell the workers who was admitted in it."""
        self._expiry.look()
        self.residence.serve_waiting(self.waiting)
        manager = self.kv_cache_manager
        manager.tried.clear()
        self.loads.place_background(lambda num_blocks: manager.make_room(num_blocks, None, None))
        with compat.set_aside(self, () if self._stood_still else self.residence.background):
            self._order_queue()
            output = super().schedule(*args, **kwargs)
        # Who waits still may need what those set aside hold; there is room for both then.
        has_tokens_left = output.total_num_scheduled_tokens < self.max_num_scheduled_tokens
        self._stood_still = has_tokens_left and not output.scheduled_new_reqs
        if self.composed.by_id or self.store.resident.has_dropped or self.records.has_orders:
            self._tell_workers(output)
        return output

    def _order_queue(self) -> None:
        """Let those who need little in between the encodings for those who need much: with priorities, who
        goes first is for these to say."""
        if self.encodings.by_unit and self.policy is SchedulingPolicy.FCFS:
            shares = max(self.max_num_running_reqs // 2, 1), self.max_num_scheduled_tokens // 2
            order = fair_order(self.waiting, self.composed.by_id, *shares)
            if order is not None:
                compat.reorder_queue(self.waiting, order)

    def _tell_workers(self, output: SchedulerOutput) -> None:
        """Send with a step what its workers are to do beside it; from here on that counts as done."""
        manager, by_id = self.kv_cache_manager, self.composed.by_id
        admitted, manager.newly_admitted = manager.newly_admitted, []
        admissions = {name: admission_of(by_id[name], self.store, self.recordings) for name in admitted}
        scheduled = [by_id[name].encoding for name in output.num_scheduled_tokens if name in by_id]
        written = [one for one in scheduled if one is not None and one.stage is Stage.WRITTEN]
        for encoding in written:
            for unit in encoding.units:
                self.recordings.complete(unit)
                self.store.resident.tally.count_encoding(unit.key.tenant)
        loads = self.loads.take_loads()
        orders = self.records.take_orders()
        message = StepMessage(admissions, self.store.resident.take_dropped(), loads, orders)
        if message:
            compat.attach_message(output, message)
        for encoding in written:
            self.encodings.over(encoding)
        self.records.save_sometimes()

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; an encoding request whose last step was scheduled has nothing to come back for."""
        super()._preempt_request(request, *args, **kwargs)
        composed = self.composed.by_id.get(request.request_id)
        if composed is not None and composed.is_encoding and composed.encoding is None:
            self.withdraw(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        if request.request_id in self.grammar_compile_error_reqs:
            return False  # refused: the step's output says so
        composed = self.composed.by_id.get(request.request_id)
        if composed is not None:
            self.kv_cache_manager.tried.append(composed)
            if composed.missing and not self._load_missing(request, composed):
                return False
        return super()._handle_blocked_waiting_request(request)

    def _load_missing(self, request: Request, composed: ComposedRequest) -> bool:
        """Have what a request misses loaded, if all of it can be: whether it misses nothing now."""
        manager = self.kv_cache_manager
        return self.loads.place(
            list(composed.missing), lambda num_blocks: manager.make_room(num_blocks, request, composed)
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM's, without the outputs of encoding requests, which nobody asked for, and with a report
        in the first output of each composed one: the front end may end a request at a stop string."""
        by_id = self.composed.by_id
        scheduled = scheduler_output.num_scheduled_tokens if by_id else ()
        composed = {request_id: by_id[request_id] for request_id in scheduled if request_id in by_id}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if composed:
            for per_client in outputs.values():
                per_client.outputs = [
                    output
                    for output in per_client.outputs
                    if (one := composed.get(output.request_id)) is None or self._is_reported(output, one)
                ]
        return outputs

    def _is_reported(self, output: EngineCoreOutput, composed: ComposedRequest) -> bool:
        """Whether an output goes to a client; the first one then says what was reused."""
        if composed.is_encoding:
            return False
        if not composed.reported:
            composed.reported = True
            report = composed.report
            self.store.resident.tally.count_request(composed.request.cache_salt, report)
            output.kv_transfer_params = {**(output.kv_transfer_params or {}), EXTRA_ARG: report}
        stats = output.prefill_stats
        if stats is not None:
            # Cached is what was there before the request came, not what was encoded for it.
            num_encoded = composed.num_encoded_tokens
            stats.num_cached_tokens -= num_encoded
            stats.num_local_cached_tokens -= num_encoded
            stats.num_computed_tokens += num_encoded
        return True

    def prompt_cache(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One call of the front end; see ``ModuleControl``."""
        return self.control.call(operation, payload)

    def adapter_loaded(self, lora_request: LoRARequest) -> None:
        """The workers have loaded an adapter, perhaps other weights at the same path."""
        self.composing.adapters.loaded(lora_request)

    def has_requests(self) -> bool:
        """As vLLM's; what is loaded for a pin, is to be, or has expired, needs steps as well."""
        return self.loads.wants_step or self.store.resident.has_dropped or super().has_requests()

    def _ttl_of(self, unit: StoredUnit) -> float | None:
        """After how many seconds without use a unit's states go: the fewest that anybody has said."""
        said = (self._module_ttl_s, self.catalog.ttl_of(unit.key.digest), unit.ttl_s)
        return min((ttl for ttl in said if ttl is not None), default=None)

    def meet_workers(self, call_workers: CallWorkers) -> None:
        """How to ask something of all workers between steps."""
        self.loads.call_workers = call_workers

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """As vLLM's: weights may have changed, so records are forgotten too."""
        self.records.forget_all()
        return super().reset_prefix_cache(*args, **kwargs)

    def shutdown(self) -> None:
        """As vLLM's; what is known of records on disk is written."""
        super().shutdown()
        self.records.close()

    def check_integrity(self) -> None:
        """Check block accounting; see ``accounting.check_integrity``."""
        self.kv_cache_manager.check_integrity()


class PromptCacheScheduler(PromptCacheScheduling, Scheduler):
    """vLLM's scheduler with modular reuse."""


class PromptCacheAsyncScheduler(PromptCacheScheduling, AsyncScheduler):
    """vLLM's asynchronous scheduler with modular reuse."""
