"""KV connectors of vLLM, which also keep what they were told, and what they told their workers."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

told: list[str] = []
loaded: list[int] = []
stored: list[set[int]] = []
flushed: list[set[int]] = []


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


class SchedulersOffloadingConnector(OffloadingConnector):
    """vLLM's connector that offloads blocks, the scheduler's part. The workers' needs a GPU: what is to be
    stored never is."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        if role is KVConnectorRole.SCHEDULER:
            super().__init__(vllm_config, role, kv_cache_config)
        else:
            KVConnectorBase_V1.__init__(self, vllm_config, role, kv_cache_config)
            self.connector_scheduler = self.connector_worker = None

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        told.extend(scheduler_output.num_scheduled_tokens)
        metadata: Any = super().build_connector_meta(scheduler_output)
        stored.append(set(metadata.store_jobs))
        flushed.append(set(metadata.jobs_to_flush))
        return metadata

    def shutdown(self) -> None:
        if self.connector_scheduler is not None:
            super().shutdown()

    def register_kv_caches(self, kv_caches: Any) -> None:
        pass

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        pass

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        return set(), set()

    def build_connector_worker_meta(self) -> None:
        return None
