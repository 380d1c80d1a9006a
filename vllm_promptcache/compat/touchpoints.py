"""Every private thing of vLLM that the plugin touches, in one table, probed at start and by a script.

A touchpoint is a class, method or function that the plugin subclasses, calls or replaces, with the parameters
that it counts on. `probe` looks at the vLLM that is loaded; ``tools/touchpoints.py`` at the files of any
vLLM, without importing it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple

from vllm_promptcache.compat.version import SUPPORTED, UnsupportedError


class Touchpoint(NamedTuple):
    """``name`` in ``module``: ``Class``, ``Class.method`` or ``function``, and parameters it has to take."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def _of(module: str, *names: str) -> list[Touchpoint]:
    """Touchpoints of one module; ``name(a, b)`` names parameters."""
    found = []
    for text in names:
        name, _, parameters = text.partition("(")
        given = tuple(p.strip() for p in parameters.rstrip(")").split(",") if p.strip())
        found.append(Touchpoint(f"vllm.{module}", name, given))
    return found


_LAYERS = [
    *_of(
        "v1.attention.backend",
        "AttentionImpl",
        "MLAAttentionImpl.do_kv_cache_update(kv_c_normed, k_pe, kv_cache, slot_mapping)",
    ),
    *_of("v1.attention.backend", "AttentionBackend", "CommonAttentionMetadata.replace"),
    *_of("v1.worker.utils", "AttentionGroup.build_metadata(common_attn_metadata)"),
    *_of("v1.kv_cache_interface", "FullAttentionSpec", "SlidingWindowSpec", "ChunkedLocalAttentionSpec"),
]

# By the process and the part of it that touches them.
TOUCHPOINTS: dict[str, list[Touchpoint]] = {
    "scheduler": [
        *_of(
            "v1.core.sched.scheduler",
            "Scheduler.add_request(request)",
            "Scheduler.schedule",
            "Scheduler.update_from_output(scheduler_output, model_runner_output)",
            "Scheduler._free_request(request)",
            "Scheduler._preempt_request(request)",
            "Scheduler._handle_blocked_waiting_request(request)",
            "Scheduler._connector_finished(request)",
            "Scheduler._build_kv_connector_meta(connector, scheduler_output)",
        ),
        *_of(
            "distributed.kv_transfer.kv_connector.v1.base",
            "KVConnectorBase_V1.on_new_request(request)",
            "KVConnectorBase_V1.get_num_new_matched_tokens(request, num_computed_tokens)",
            "KVConnectorBase_V1.update_state_after_alloc(request, blocks)",
        ),
        *_of("distributed.kv_events", "BlockStored", "BlockRemoved"),
        *_of("v1.core.sched.async_scheduler", "AsyncScheduler"),
        *_of(
            "v1.core.kv_cache_manager",
            "KVCacheManager.get_computed_blocks(request)",
            "KVCacheManager.allocate_slots(num_new_tokens, num_external_computed_tokens, reserved_blocks)",
            "KVCacheManager.free(request)",
            "KVCacheManager.cache_blocks(request, num_computed_tokens)",
            "KVCacheManager.record_prefix_cache_stats",
            "KVCacheManager.reset_prefix_cache",
        ),
        *_of(
            "v1.core.block_pool",
            "BlockPool.touch(blocks)",
            "BlockPool.get_new_blocks(num_blocks)",
            "BlockPool.free_blocks(ordered_blocks)",
            "BlockPool.get_cached_block(block_hash, kv_cache_group_ids)",
            "BlockPool.get_num_free_blocks",
        ),
        *_of("v1.core.kv_cache_utils", "FreeKVCacheBlockQueue.__init__(blocks)"),
        *_of("v1.core.single_type_kv_cache_manager", "FullAttentionManager"),
        *_of(
            "v1.request",
            "Request.from_engine_core_request(request, block_hasher)",
            "Request.update_block_hashes",
        ),
        *_of("v1.engine.core", "EngineCore.collective_rpc(method, timeout, args, kwargs)"),
    ],
    "v1 runner": [
        *_LAYERS,
        *_of(
            "v1.worker.gpu_model_runner",
            "GPUModelRunner._update_states(scheduler_output)",
            "GPUModelRunner._prepare_inputs(scheduler_output, num_scheduled_tokens)",
            "GPUModelRunner._build_attention_metadata",
            "GPUModelRunner._allow_microbatching",
            "GPUModelRunner._determine_batch_execution_and_padding",
            "GPUModelRunner.initialize_metadata_builders",
            "GPUModelRunner.initialize_kv_cache(kv_cache_config)",
            "GPUModelRunner.get_kv_cache_spec",
            "GPUModelRunner.execute_model(scheduler_output)",
        ),
        *_of("v1.worker.block_table", "BlockTable.get_device_tensor(num_reqs)"),
        *_of(
            "v1.spec_decode.llm_base_proposer",
            "SpecDecodeBaseProposer.propose",
            "SpecDecodeBaseProposer.set_inputs_first_pass(target_positions, cad)",
            "SpecDecodeBaseProposer._update_positions_dependent_metadata(positions, common_attn_metadata)",
        ),
        *_of(
            "v1.worker.utils",
            "AttentionGroup.build_metadata_for_drafting(common_attn_metadata, draft_index)",
        ),
        *_of("v1.cudagraph_dispatcher", "CudagraphDispatcher.dispatch(valid_modes, invalid_modes)"),
    ],
    "v2 runner": [
        *_LAYERS,
        *_of(
            "v1.worker.gpu.model_runner",
            "GPUModelRunner.load_model",
            "GPUModelRunner.initialize_kv_cache(kv_cache_config)",
            "GPUModelRunner.get_kv_cache_spec",
            "GPUModelRunner.finish_requests(scheduler_output)",
            "GPUModelRunner.add_requests(scheduler_output)",
            "GPUModelRunner.gather_batch_req_state(scheduler_output, dummy_run)",
            "GPUModelRunner.prepare_attn(input_batch)",
            "GPUModelRunner.execute_model(scheduler_output)",
            "BatchReqState",
        ),
        *_of("v1.worker.gpu.attn_utils", "init_attn_backend(kv_cache_config, vllm_config, device)"),
        *_of(
            "v1.worker.gpu.cudagraph_utils",
            "BatchExecutionDescriptor",
            "CudaGraphManager.dispatch(num_reqs, num_tokens, uniform_token_count, num_active_loras)",
        ),
        *_of(
            "v1.worker.gpu.spec_decode.target_dependent_ar.speculator",
            "TargetDependentARSpeculator.propose(input_batch, attn_metadata, slot_mappings, dummy_run)",
            "TargetDependentARSpeculator.on_prefill_begin(num_reqs)",
            "TargetDependentARSpeculator.on_multi_step_decode_begin(num_reqs)",
            "TargetDependentARSpeculator._run_model(num_tokens, attn_metadata, slot_mappings)",
            "TargetDependentARSpeculator.advance_draft_positions",
        ),
        *_of(
            "v1.worker.gpu.spec_decode.standalone_ar.speculator",
            "StandaloneARSpeculator.propose(input_batch, attn_metadata, slot_mappings, dummy_run)",
            "StandaloneARSpeculator._prefill(input_batch)",
            "StandaloneARSpeculator._multi_step_decode(input_batch)",
            "StandaloneARSpeculator._run_model(input_ids, positions, attn_metadata, slot_mappings)",
        ),
        *_of(
            "v1.worker.gpu.spec_decode.speculator",
            "DraftModelSpeculator._build_attn_metadata(slot_mappings)",
        ),
        *_of(
            "v1.worker.gpu.model_states.interface",
            "ModelState.prepare_inputs(input_batch, req_states)",
            "ModelState.prepare_dummy_inputs(num_reqs, num_tokens)",
        ),
    ],
    "cpu worker": _of("v1.worker.cpu_worker", "CPUWorker.init_device"),
    "gpu worker": _of("v1.worker.gpu_worker", "Worker._make_model_runner"),
    "arguments": _of(
        "engine.arg_utils",
        "EngineArgs.add_cli_args(parser)",
        "EngineArgs.from_cli_args(cls, args)",
        "EngineArgs.create_engine_config(usage_context, headless)",
    ),
    "server": [
        *_of("v1.engine.input_processor", "InputProcessor.process_inputs(request_id, prompt, params)"),
        *_of(
            "v1.engine.output_processor",
            "RequestState.make_request_output(new_token_ids, finish_reason, stop_reason, kv_transfer_params)",
        ),
        *_of("v1.engine.detokenizer", "FastIncrementalDetokenizer.__init__(tokenizer, request)"),
        *_of("entrypoints.launchers.app", "attach_endpoint_plugins(app, supported_tasks)"),
        *_of("entrypoints.generate.api_router", "init_generate_state(engine_client, state, args)"),
    ],
}


def probe(*parts: str) -> None:
    """Check the touchpoints of parts of the table, importing what they are in.

    Raises:
        UnsupportedError: naming all that are not there as they were.
    """
    wrong = [p for part in parts for touchpoint in TOUCHPOINTS[part] if (p := problem_of(touchpoint))]
    if wrong:
        raise UnsupportedError(f"vllm-promptcache was written for vLLM {SUPPORTED}; here {'; '.join(wrong)}")


def problem_of(touchpoint: Touchpoint) -> str:
    """What is wrong with a touchpoint in the loaded vLLM; empty if nothing is."""
    try:
        found: Any = importlib.import_module(touchpoint.module)
        for name in touchpoint.name.split("."):
            found = inspect.getattr_static(found, name)
    except (ImportError, AttributeError):
        return f"{touchpoint} is not there"
    if not touchpoint.parameters:
        return ""
    function = getattr(found, "__func__", found)
    return missing(touchpoint, inspect.signature(function).parameters)


def missing(touchpoint: Touchpoint, parameters: Iterable[str]) -> str:
    """What of a touchpoint's parameters is not among those found; empty if all are."""
    absent = set(touchpoint.parameters) - set(parameters)
    return f"{touchpoint} does not take {', '.join(sorted(absent))}" if absent else ""
