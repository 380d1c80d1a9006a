"""KV connectors and events: composed requests are hidden from them, so that plain ones may use them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vllm_promptcache.compat.shims import expect


def hide_from_connector(connector: Any, is_hidden: Callable[[str], bool]) -> None:
    """Have a scheduler's KV connector hear nothing of some requests, and find nothing for them.

    Target: on_new_request, get_num_new_matched_tokens and update_state_after_alloc of one KVConnectorBase_V1.
    Why: connectors know blocks by the tokens before them. Unnecessary once a request can opt out.
    """
    arrives, matches, allocates = (
        connector.on_new_request,
        connector.get_num_new_matched_tokens,
        connector.update_state_after_alloc,
    )
    expect(matches, "request", "num_computed_tokens")
    expect(allocates, "request", "blocks")

    def on_new_request(request: Any) -> None:
        if not is_hidden(request.request_id):
            arrives(request)

    def get_num_new_matched_tokens(request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if is_hidden(request.request_id):
            return 0, False
        found: tuple[int | None, bool] = matches(request, num_computed_tokens)
        return found

    def update_state_after_alloc(request: Any, blocks: Any, *args: Any) -> None:
        if not is_hidden(request.request_id):
            allocates(request, blocks, *args)

    connector.on_new_request = on_new_request
    connector.get_num_new_matched_tokens = get_num_new_matched_tokens
    connector.update_state_after_alloc = update_state_after_alloc


def without_requests(scheduler_output: Any, is_hidden: Callable[[str], bool]) -> Any:
    """A step's ``SchedulerOutput`` as if some of its requests were not in it."""
    cached = scheduler_output.scheduled_cached_reqs
    kept = [index for index, name in enumerate(cached.req_ids) if not is_hidden(name)]

    def of_kept(values: list[Any]) -> list[Any]:
        return [values[index] for index in kept] if values else values

    state = scheduler_output.kv_connector_block_state
    if state is not None:
        state = dataclasses.replace(state, req_ids={name for name in state.req_ids if not is_hidden(name)})
    tokens = {name: n for name, n in scheduler_output.num_scheduled_tokens.items() if not is_hidden(name)}
    return dataclasses.replace(
        scheduler_output,
        scheduled_new_reqs=[new for new in scheduler_output.scheduled_new_reqs if not is_hidden(new.req_id)],
        scheduled_cached_reqs=dataclasses.replace(
            cached,
            req_ids=of_kept(cached.req_ids),
            new_token_ids=of_kept(cached.new_token_ids),
            new_block_ids=of_kept(cached.new_block_ids),
            num_computed_tokens=of_kept(cached.num_computed_tokens),
            num_output_tokens=of_kept(cached.num_output_tokens),
            resumed_req_ids={name for name in cached.resumed_req_ids if not is_hidden(name)},
            all_token_ids={n: ids for n, ids in cached.all_token_ids.items() if not is_hidden(n)},
        ),
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        kv_connector_block_state=state,
    )


def tell_of_blocks(connector: Any, block_ids: Iterable[int]) -> None:
    """Tell connectors that read blocks after their requests have ended which ones are about to be written.

    Target: OffloadingConnectorScheduler._current_batch_allocated_block_ids, also of a MultiConnector's parts.
    Why: it learns of that from requests, and those that are hidden from it write too. Unnecessary once such
    blocks are referenced meanwhile, as SimpleCPUOffloadConnector has it.
    """
    for part in getattr(connector, "_connectors", (connector,)):
        written = getattr(
            getattr(part, "connector_scheduler", None), "_current_batch_allocated_block_ids", None
        )
        if written is not None:
            written.update(block_ids)


@contextlib.contextmanager
def no_block_events(block_pool: Any) -> Iterator[None]:
    """Have a block pool tell of no blocks meanwhile."""
    told = block_pool.enable_kv_cache_events
    block_pool.enable_kv_cache_events = False
    try:
        yield
    finally:
        block_pool.enable_kv_cache_events = told
