"""How a shim is put in place: checked before, once, and recognisable after."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from vllm_promptcache.compat.version import UnsupportedError


def expect(target: Callable[..., Any], *parameters: str) -> None:
    """Check that a shim's target still takes the parameters that the shim counts on."""
    found = inspect.signature(target).parameters
    missing = [name for name in parameters if name not in found]
    if missing:
        raise UnsupportedError(f"{target.__qualname__} no longer takes {', '.join(missing)}")


def wrap_once(owner: Any, name: str, make: Callable[[Any], Any], *parameters: str) -> None:
    """Replace ``owner.name`` by ``make(original)``, once, after checking its parameters."""
    original = inspect.getattr_static(owner, name)
    function = getattr(original, "__func__", original)
    if getattr(function, "_prompt_cache", False):
        return
    expect(function, *parameters)
    wrapped = make(function)
    functools.update_wrapper(wrapped, function)
    wrapped._prompt_cache = True
    if isinstance(original, (staticmethod, classmethod)):
        wrapped = type(original)(wrapped)
    setattr(owner, name, wrapped)


def carries(params: Any, key: str) -> bool:
    """Whether a request's sampling parameters, None for another kind of request, have ``extra_args[key]``."""
    return params is not None and (params.extra_args or {}).get(key) is not None
