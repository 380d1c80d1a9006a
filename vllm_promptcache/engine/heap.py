"""glibc's heap, as a CPU worker has it."""

from __future__ import annotations

import contextlib
import ctypes
import os

# Of glibc's malloc.h. The largest threshold that it takes on 64-bit machines.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 1 << 30
# Who sets one of these knows better.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_heap() -> bool:
    """Have glibc keep what a forward pass frees for the next one; whether it does.

    By itself it gives the heap's end back to the system, or not, as what happens to lie there decides, and
    takes it again page by page with every pass. Other allocators (tcmalloc, as vLLM advises) take no notice.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(
            mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
        )
    return False
