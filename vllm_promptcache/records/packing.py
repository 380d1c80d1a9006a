"""Packing: rows in half the memory, as 8-bit floating point numbers with a scale for each row."""

from __future__ import annotations

import torch

PACKED = torch.float8_e4m3fn
LARGEST = torch.finfo(PACKED).max
SCALE_BYTES = 4


def pack(rows: torch.Tensor) -> torch.Tensor:
    """Rows ``(…, dimensions)`` as bytes, uint8 ``(…, dimensions + 4)``: numbers, then their float32 scale."""
    numbers = rows.float()
    scale = (numbers.abs().amax(-1, keepdim=True) / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    packed = (numbers / scale).to(PACKED)
    return torch.cat((packed.view(torch.uint8), scale.contiguous().view(torch.uint8)), -1)


def unpack(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows as they were packed, but for rounding."""
    numbers = packed[..., :-SCALE_BYTES].contiguous().view(PACKED).float()
    scale = packed[..., -SCALE_BYTES:].contiguous().view(torch.float32)
    return (numbers * scale).to(dtype)


def bytes_of_row(dimensions: int, dtype: torch.dtype, *, packed: bool) -> int:
    """Bytes that a row of so many numbers takes."""
    return dimensions + SCALE_BYTES if packed else dimensions * dtype.itemsize
