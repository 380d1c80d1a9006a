"""How the registry reaches the engine: the same from a server's event loop and from a script."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

# What is no longer is read at once, by whoever has it: a thread would take longer.
SMALL_CHARACTERS = 8 * 1024
# The same for what is worked out for each of a schema's modules.
SMALL_MODULES = 128


class EngineConnection(Protocol):
    """The engine, as the front end needs it."""

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One of the scheduler's ``prompt_cache`` operations."""
        ...

    async def pause(self) -> None:
        """Let the engine get on for a moment."""
        ...

    async def run(self, function: Callable[[], T]) -> T:
        """Run what may take long, without holding up others."""
        ...


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a connection that never suspends, without an event loop.

    Raises:
        RuntimeError: the coroutine waits for something.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("the connection to the engine suspended; it needs an event loop")
