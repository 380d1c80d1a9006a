"""Host memory for what stays: mappings of its own, beside the heap."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch

# Smaller ones come from the heap.
LEAST_BYTES = 1 << 20
_HUGE_PAGE = 2 << 20


def host_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor in host memory, as ``torch.empty``, that leaves the heap alone.

    A large tensor that stays among those of a forward pass, which come and go, makes glibc give the heap's
    end back to the system and take it again with each of them: on CPUs a pass took a fifth longer.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < LEAST_BYTES:
        return torch.empty(*shape, dtype=dtype)
    mapping = mmap.mmap(-1, num_bytes)
    if num_bytes >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(*shape)
