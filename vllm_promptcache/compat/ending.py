"""As `compat.server`: whatever waits for an engine ends with it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from vllm_promptcache.compat.shims import wrap_once


def end_calls_with_engine() -> None:
    """Let utility calls, and scripts' waits for outputs, raise EngineDeadError when the engine has ended.

    Targets: AsyncMPClient._ensure_output_queue_task and SyncMPClient.__init__. Why: vLLM ends the requests
    in flight when the engine process dies, but never resolves the future of a utility call; whoever awaits
    it keeps the server from ending (patches/: utility-calls-end).
    """
    from vllm.v1.engine.core_client import AsyncMPClient, SyncMPClient

    def make_async(original: Any) -> Any:
        def _ensure_output_queue_task(self: Any) -> None:
            resources, calls = self.resources, self.utility_results
            before = resources.output_queue_task
            original(self)
            task = resources.output_queue_task
            if task is not None and task is not before:
                task.add_done_callback(lambda _: _end(resources, calls))

        return _ensure_output_queue_task

    def make_sync(original: Any) -> Any:
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            thread, resources = self.output_queue_thread, self.resources
            calls, outputs = self.utility_results, self.outputs_queue

            def watch() -> None:
                thread.join()
                _end(resources, calls)
                outputs.put_nowait(_dead())

            threading.Thread(target=watch, name="EngineCoreEnd", daemon=True).start()

        return __init__

    wrap_once(AsyncMPClient, "_ensure_output_queue_task", make_async, "self")
    wrap_once(SyncMPClient, "__init__", make_sync, "self", "vllm_config", "executor_class", "log_stats")


async def engine_ended(engine_client: Any) -> None:
    """Wait until nothing comes from an engine any more, however it ended."""
    await asyncio.wait([engine_client.engine_core.resources.output_queue_task])


def _end(resources: Any, calls: dict[int, Any]) -> None:
    """What waits is told, and what comes later is refused: nobody reads answers any more."""
    resources.engine_dead = True
    while calls:
        _, call = calls.popitem()
        if not call.done():
            call.set_exception(_dead())


def _dead() -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError()
