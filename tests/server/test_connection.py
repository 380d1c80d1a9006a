"""What a server's connection to the engine does for the event loop beside it."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest

from vllm_promptcache.server import connection
from vllm_promptcache.server.connection import AsyncEngineConnection


@pytest.fixture
def engine() -> Iterator[AsyncEngineConnection]:
    """Of no engine; the process's settings are put back."""
    before = sys.getswitchinterval(), gc.get_threshold()
    yield AsyncEngineConnection(SimpleNamespace(engine_core=None))
    sys.setswitchinterval(before[0])
    gc.set_threshold(*before[1])


class Clock:
    """A thread's time and everybody's, as work and rest let them pass."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.rests: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked

    def sleep(self, seconds: float) -> None:
        self.rests.append(round(seconds, 6))
        self.now += seconds

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds


def test_a_thread_rests_twice_as_long_as_it_has_worked(
    engine: AsyncEngineConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its next work and not behind its last; and not for short work."""
    clock = Clock()
    monkeypatch.setattr(connection, "time", clock)
    monkeypatch.setattr(engine, "_threads", connection.ThreadPoolExecutor(1))

    def fails() -> None:
        clock.work(0.11)
        raise ValueError("what went wrong")

    async def ask() -> None:
        for seconds in (0.005, 0.06, 0.01, 30.0, 0.01):
            await engine.run(partial(clock.work, seconds))
        with pytest.raises(ValueError, match="what went wrong"):
            await engine.run(fails)
        await engine.run(lambda: None)

    asyncio.run(ask())
    assert clock.rests == [0.0, 0.0, 0.1, 0.0, 0.5, 0.0, 0.2]


@pytest.mark.usefixtures("engine")
def test_threads_switch_often_and_rarely_stop_for_garbage() -> None:
    """Each document of many modules had all that is remembered looked through, while the event loop waits."""
    assert sys.getswitchinterval() <= 0.001
    young, middle, old = gc.get_threshold()
    assert young * middle * old >= 2_000_000
