"""vLLM's example of a KV connector, which also keeps of which requests it was told."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector

told: list[str] = []
loaded: list[int] = []


class TellingConnector(ExampleConnector):
    """Stores the states of plain prompts in files named by their tokens, and loads them."""

    def on_new_request(self, request: Any) -> None:
        told.append(request.request_id)
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        told.append(request.request_id)
        num_tokens, is_async = super().get_num_new_matched_tokens(request, num_computed_tokens)
        loaded.append(num_tokens or 0)
        return num_tokens, is_async

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        told.append(request.request_id)
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        told.extend(new.req_id for new in scheduler_output.scheduled_new_reqs)
        told.extend(scheduler_output.scheduled_cached_reqs.req_ids)
        told.extend(scheduler_output.num_scheduled_tokens)
        assert scheduler_output.total_num_scheduled_tokens == sum(
            scheduler_output.num_scheduled_tokens.values()
        )
        return super().build_connector_meta(scheduler_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        told.append(request.request_id)
        return super().request_finished(request, block_ids)
