"""KV connectors beside modules: they see plain requests only."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_promptcache import compat
from vllm_promptcache.engine.block_manager import PromptCacheBlockManager
from vllm_promptcache.engine.composed_requests import ComposedRequests
from vllm_promptcache.engine.loading import Loads

if TYPE_CHECKING:
    Base = Scheduler
else:
    Base = object


class PlainConnecting(Base):
    """Mixin over vLLM's schedulers: composed requests, encodings among them, are hidden from the connector.

    A connector names blocks by the tokens before them. In the order in which vLLM has a composed prompt, and
    behind states that have seen something else, they would be found by plain prompts, and be wrong.
    """

    kv_cache_manager: PromptCacheBlockManager
    composed: ComposedRequests
    loads: Loads

    def _hide_from_connector(self) -> None:
        if self.connector is not None:
            compat.hide_from_connector(self.connector, self.composed.by_id.__contains__)

    def _connector_finished(self, request: Request) -> tuple[bool, dict[str, Any] | None]:
        """As vLLM's; a KV connector knows nothing of composed requests."""
        if request.request_id in self.composed.by_id:
            return False, None
        return super()._connector_finished(request)

    def _build_kv_connector_meta(self, connector: Any, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, of a step without its composed requests; what they write over, connectors must not
        be about to read."""
        by_id = self.composed.by_id
        if not by_id and not self.loads.placed:
            return super()._build_kv_connector_meta(connector, scheduler_output)
        compat.tell_of_blocks(connector, self._blocks_written(scheduler_output))
        plain = compat.without_requests(scheduler_output, by_id.__contains__)
        return super()._build_kv_connector_meta(connector, plain)

    def _blocks_written(self, scheduler_output: SchedulerOutput) -> set[int]:
        """The blocks that a step may write without its plain requests."""
        scheduled = [
            c for name in scheduler_output.num_scheduled_tokens if (c := self.composed.by_id.get(name))
        ]
        tables = self.kv_cache_manager.tables
        blocks = [block for composed in scheduled for block in tables[composed.request.request_id]]
        encoded = [composed.encoding.units for composed in scheduled if composed.encoding is not None]
        blocks += [block for unit in (*chain(*encoded), *self.loads.placed) for block in unit.blocks]
        return {block.block_id for block in blocks}
