"""Host memory for what stays: mappings of its own, beside the heap."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch

# Smaller ones come from the heap.
LEAST_BYTES = 1 << 20


def host_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor in host memory, as ``torch.empty``, that leaves the heap alone.

    A large tensor that stays among those of a forward pass, which come and go, makes glibc give the heap's
    end back to the system and take it again with each of them (docs/log/performance.md).
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < LEAST_BYTES:
        return torch.empty(*shape, dtype=dtype)
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # not every kernel has huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(*shape)
