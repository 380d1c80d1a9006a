"""Chat roles of prompt programs: `with system():` and its like put what stands in them into a message."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

# Programs are read and never run; run all the same, they do nothing.


def system() -> AbstractContextManager[None]:
    """A system message."""
    return nullcontext()


def user() -> AbstractContextManager[None]:
    """A user's message."""
    return nullcontext()


def assistant() -> AbstractContextManager[None]:
    """An answer."""
    return nullcontext()
