"""Rows in 8 bits: half the memory, and little lost."""

import pytest
import torch

from vllm_promptcache.records.packing import bytes_of_row, pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3000.0])
def test_packed_rows_are_close(dtype: torch.dtype, scale: float) -> None:
    rows = (torch.randn(3, 50, 2, 64, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    packed = pack(rows)
    assert packed.dtype == torch.uint8
    assert packed.nbytes == 3 * 50 * 2 * bytes_of_row(64, dtype, packed=True)
    again = unpack(packed, dtype)
    assert again.dtype == dtype
    largest = rows.float().abs().amax(-1, keepdim=True)
    assert ((again.float() - rows.float()).abs() <= largest / 14).all()
    error = (again.float() - rows.float()).square().mean().sqrt() / rows.float().square().mean().sqrt()
    assert error < 0.04


def test_rows_of_zeros_stay() -> None:
    rows = torch.zeros(2, 8, dtype=torch.bfloat16)
    assert torch.equal(unpack(pack(rows), torch.bfloat16), rows)


def test_half_the_bytes() -> None:
    assert bytes_of_row(128, torch.bfloat16, packed=True) < 0.52 * bytes_of_row(
        128, torch.bfloat16, packed=False
    )
