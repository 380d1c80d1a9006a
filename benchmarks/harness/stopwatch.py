"""Own time of the plugin's code inside a running engine, without what it calls of vLLM's."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

# Frames of vLLM's own code, whose time is not the plugin's.
VLLM = "vllm"
PLUGIN = "vllm_promptcache."
_MARK = "_benchmark_watched"


class Stopwatch:
    """Exclusive times by name: while a watched function runs inside another, only the inner one's count.

    ``nanoseconds`` are totals since the last ``reset``.
    """

    def __init__(self) -> None:
        self.nanoseconds: dict[str, int] = {}
        self._names: list[str] = []
        self._since = 0

    def reset(self) -> dict[str, int]:
        """The totals so far, which begin again."""
        totals, self.nanoseconds = self.nanoseconds, {}
        return totals

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its own time counted under a name."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._names.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._names.pop()

        setattr(timed, _MARK, True)
        return timed

    def watched_within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """As `watched`, but a call from anywhere else than watched plugin code counts as vLLM's."""
        inside, outside = self.watched(name, function), self.watched(VLLM, function)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            is_inside = bool(self._names) and self._names[-1] != VLLM
            return (inside if is_inside else outside)(*args, **kwargs)

        return timed

    def _switch(self) -> None:
        now = time.perf_counter_ns()
        if self._names:
            name = self._names[-1]
            self.nanoseconds[name] = self.nanoseconds.get(name, 0) + now - self._since
        self._since = now


def watch_plugin(stopwatch: Stopwatch, live: Iterable[Any], *, every_method: bool = False) -> list[str]:
    """Watch where vLLM calls the plugin: methods of its classes that override vLLM's, and callable objects.

    What those call through ``super()`` is watched as vLLM's. Nothing has to be named here, so a method that
    is new or renamed is counted as well. Methods that write edge rows are watched apart, and with
    ``every_method`` all others too, which costs a microsecond a call. Returns the watched names.
    """
    names: list[str] = []
    for instance in live:
        order = type(instance).__mro__
        for place, cls in enumerate(order):
            if cls.__module__.startswith(PLUGIN):
                names += _watch_class(stopwatch, cls, order[place + 1 :], every_method)
    for module in [m for name, m in sys.modules.items() if name.startswith(f"{PLUGIN}engine.")]:
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                names += _watch_calls(stopwatch, cls)
    return names


def _watch_class(stopwatch: Stopwatch, cls: type, above: tuple[type, ...], every_method: bool) -> list[str]:
    names = []
    for name, function in list(vars(cls).items()):
        if name.startswith("__") or not inspect.isfunction(function) or _is_watched(function):
            continue
        base = next((b for b in above if not b.__module__.startswith(PLUGIN) and name in vars(b)), None)
        if base is None and not every_method and "edge_row" not in name:
            continue
        names.append(f"{cls.__name__}.{name}")
        setattr(cls, name, stopwatch.watched(names[-1], function))
        if base is not None and inspect.isfunction(vars(base)[name]) and not _is_watched(vars(base)[name]):
            setattr(base, name, stopwatch.watched(VLLM, vars(base)[name]))
    return names


def _watch_calls(stopwatch: Stopwatch, cls: type) -> list[str]:
    function = vars(cls).get("__call__")
    if not inspect.isfunction(function) or _is_watched(function):
        return []
    name = "__call__"
    setattr(cls, name, stopwatch.watched(f"{cls.__name__}.{name}", function))
    return [f"{cls.__name__}.{name}"]


def _is_watched(function: Callable[..., Any]) -> bool:
    return hasattr(function, _MARK)
