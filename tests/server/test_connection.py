"""What a server's connection to the engine does for the event loop beside it."""

import gc
import sys
from types import SimpleNamespace

from vllm_promptcache.server.connection import AsyncEngineConnection


def test_threads_switch_often_and_rarely_stop_for_garbage() -> None:
    """Each document of many modules had all that is remembered looked through, while the event loop waits."""
    before = sys.getswitchinterval(), gc.get_threshold()
    try:
        AsyncEngineConnection(SimpleNamespace(engine_core=None))
        assert sys.getswitchinterval() <= 0.001
        young, middle, old = gc.get_threshold()
        assert young * middle * old >= 2_000_000
    finally:
        sys.setswitchinterval(before[0])
        gc.set_threshold(*before[1])
