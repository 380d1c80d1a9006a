"""What is worked out once for an object without a dictionary of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class once(Generic[T]):
    """As ``functools.cached_property``, kept in a slot: that of the name with an underscore before it.

    A dictionary takes four times as much memory as all of a small object's slots.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._slot = f"_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> once[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        try:
            return getattr(instance, self._slot)
        except AttributeError:
            value = self._function(instance)
            object.__setattr__(instance, self._slot, value)
            return value
