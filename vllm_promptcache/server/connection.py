"""The API server's connection to the engine process."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_PAUSE_S = 0.05
# Of engines that differ, the one that has got furthest is told of.
_RESIDENCIES = ("absent", "encoding", "resident")
_SAME_EVERYWHERE = ("block_size", "window")
# Long work shares one lock with the event loop: more threads would only take more of its turns.
_NUM_THREADS = 2
# Work of more than so many seconds has its thread rest before the next, so many times what it took beyond
# them, and at most so long: whoever keeps all threads busy leaves half of the turns to others.
_SHORT_S, _REST, _REST_S = 0.01, 2.0, 0.5
# How long a thread that computes keeps this lock while the event loop waits for it. The loop gives it away
# with each read and write of a socket, many times a request: Python's 5 ms would add up to more than that.
_SWITCH_S = 0.0005
# How many objects more there are before Python looks for garbage among the young ones, and how often before
# it looks among all: that stops all threads for longer, the more documents are remembered.
_COLLECT_AFTER = (10_000, 20, 100)


class _Rest(threading.local):
    """Until when a thread rests, of `time.monotonic`."""

    until = 0.0


class AsyncEngineConnection:
    """Calls over vLLM's engine client; long work runs in a thread. The process's threads switch more often
    from then on, and stop less often for Python to look for garbage."""

    def __init__(self, engine_client: Any) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        gc.set_threshold(*map(max, gc.get_threshold(), _COLLECT_AFTER))
        self._core = engine_client.engine_core
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="prompt-cache")
        self._rest = _Rest()

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One of the scheduler's ``prompt_cache`` operations.

        Sent at once to all engines: a request that is sent later reaches them later.
        """
        answers = await self._core.call_utility_all_async("prompt_cache", operation, payload)
        return merge_answers(answers)

    async def pause(self) -> None:
        """Wait a moment; the engine runs by itself."""
        await asyncio.sleep(_PAUSE_S)

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in one of a few threads, which rests before the next if this one takes long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._rested, function)

    def _rested(self, function: Callable[[], T]) -> T:
        time.sleep(max(0.0, self._rest.until - time.monotonic()))
        begun = time.thread_time()
        try:
            return function()
        finally:
            rest = _REST * max(0.0, time.thread_time() - begun - _SHORT_S)
            self._rest.until = time.monotonic() + min(rest, _REST_S)


def merge_answers(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several engines answer to one call as one answer; of a single engine its own.

    Counts are added up, but for those that are the same everywhere; what is ``pinned`` is so in all engines;
    a refusal by one is one. ``engines`` has the answers themselves.
    """
    if len(answers) == 1:
        return answers[0]
    merged: dict[str, Any] = {name: _merge(name, [a[name] for a in answers]) for name in answers[0]}
    return {**merged, "engines": list(answers)}


def _merge(name: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, list):
        return [_merge(name, list(each)) for each in zip(*values, strict=True)]
    if isinstance(first, dict):
        return {key: _merge(key, [value[key] for value in values]) for key in first}
    if isinstance(first, bool):
        return all(values)
    if isinstance(first, int) and name not in _SAME_EVERYWHERE:
        return sum(values)
    if name == "residency":
        return max(values, key=_RESIDENCIES.index)
    return next((value for value in values if value is not None), None)
