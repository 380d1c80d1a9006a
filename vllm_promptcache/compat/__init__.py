"""Everything that knows a vLLM version: one function a shim, each checked before it is put in place.

Every shim says what it targets, why, and what would make it unnecessary; ``patches/`` holds the diffs
that would. Thin subclasses elsewhere rest on vLLM's classes, this package on its private details.
``server`` is about the API server and is imported there only.
"""

from __future__ import annotations

from vllm_promptcache.compat.arguments import wrap_engine_args
from vllm_promptcache.compat.blocks import before_new_blocks, next_blocks
from vllm_promptcache.compat.connector import (
    hide_from_connector,
    no_block_events,
    tell_of_blocks,
    without_requests,
)
from vllm_promptcache.compat.drafter import (
    SpeculatorView,
    can_see_through,
    can_see_through_speculator,
    drafter_layers,
    see_through_drafter,
    see_through_speculator,
)
from vllm_promptcache.compat.layers import (
    as_full_attention,
    cache_updates_observed,
    check_layers,
    is_latent,
    shape_of_rows,
    shares_cache,
    update_cache,
)
from vllm_promptcache.compat.model import numbers_of_rows, register_mpt, weights_folder
from vllm_promptcache.compat.rotary import LayerRotary, rotary_of_layers
from vllm_promptcache.compat.scheduler import (
    attach_message,
    check_kv_cache,
    hash_blocks_later,
    hash_blocks_now,
    install_engine_utility,
    introduce_workers,
    kv_cache_manager_class,
    message_of,
    notice_adapters,
    physical_slots,
    plain_block_hash,
    queue_before,
    refuse,
    reorder_prompt,
    reorder_queue,
    set_aside,
)
from vllm_promptcache.compat.shims import carries, expect, wrap_once
from vllm_promptcache.compat.touchpoints import probe
from vllm_promptcache.compat.version import SUPPORTED, UnsupportedError, check_version, installed_vllm
from vllm_promptcache.compat.worker import (
    attention_metadata_seen_through,
    model_runner_class,
    no_full_graphs,
    no_full_graphs_in_v2,
    replace_model_positions,
    room_for_rows,
    room_for_rows_in_v2,
)

__all__ = [
    "UnsupportedError",
    "check_version",
    "SUPPORTED",
    "installed_vllm",
    "expect",
    "probe",
    "wrap_once",
    "carries",
    "wrap_engine_args",
    "kv_cache_manager_class",
    "check_kv_cache",
    "install_engine_utility",
    "introduce_workers",
    "reorder_prompt",
    "hash_blocks_later",
    "hash_blocks_now",
    "notice_adapters",
    "queue_before",
    "refuse",
    "reorder_queue",
    "plain_block_hash",
    "set_aside",
    "before_new_blocks",
    "next_blocks",
    "physical_slots",
    "attach_message",
    "message_of",
    "model_runner_class",
    "hide_from_connector",
    "no_block_events",
    "tell_of_blocks",
    "without_requests",
    "SpeculatorView",
    "can_see_through",
    "can_see_through_speculator",
    "drafter_layers",
    "see_through_drafter",
    "see_through_speculator",
    "as_full_attention",
    "check_layers",
    "shape_of_rows",
    "shares_cache",
    "is_latent",
    "update_cache",
    "rotary_of_layers",
    "numbers_of_rows",
    "weights_folder",
    "register_mpt",
    "LayerRotary",
    "no_full_graphs",
    "no_full_graphs_in_v2",
    "replace_model_positions",
    "room_for_rows",
    "room_for_rows_in_v2",
    "attention_metadata_seen_through",
    "cache_updates_observed",
]
