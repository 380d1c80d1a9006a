"""The scheduler for models whose states cannot be composed: composed requests run as plain prompts.

The front end knows it from `stats`, and sends prompts of which nothing is reused (`repairs.plain_prompt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_promptcache import compat
from vllm_promptcache.blocks.wire import EXTRA_ARG
from vllm_promptcache.engine.loading import CallWorkers
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.no_modules import NoModules

if TYPE_CHECKING:
    Base = Scheduler
else:
    Base = object


class PlainScheduling(Base):
    """Mixin over vLLM's schedulers: reports on composed requests, and answers the front end's calls."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        self.modules = NoModules(
            ModuleStore(self.kv_cache_manager.block_pool, self.block_size, 0, self.max_model_len)
        )
        # Composed requests that nothing was reported of.
        self._unreported: dict[str, Request] = {}
        compat.install_engine_utility()

    def add_request(self, request: Request) -> None:
        """As vLLM's. A composed request's tokens come in the order of their positions."""
        if compat.carries(request.sampling_params, EXTRA_ARG):
            self._unreported[request.request_id] = request
            compat.hash_blocks_now(request)
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._unreported.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """As vLLM's, with a report in the first output of each composed request."""
        composed = dict(self._unreported)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for per_client in outputs.values() if composed else ():
            for output in per_client.outputs:
                request = composed.get(output.request_id)
                if request is None:
                    continue
                self._unreported.pop(output.request_id, None)
                found = output.prefill_stats.num_cached_tokens if output.prefill_stats is not None else 0
                report = self.modules.report(request.num_prompt_tokens, found)
                output.kv_transfer_params = {**(output.kv_transfer_params or {}), EXTRA_ARG: report}
        return outputs

    def prompt_cache(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One call of the front end; see ``NoModules``."""
        return self.modules.call(operation, payload)

    def meet_workers(self, call_workers: CallWorkers) -> None:
        """There is nothing to ask them."""


class PlainScheduler(PlainScheduling, Scheduler):
    """vLLM's scheduler, for a model without modules."""


class PlainAsyncScheduler(PlainScheduling, AsyncScheduler):
    """vLLM's asynchronous scheduler, for a model without modules."""
