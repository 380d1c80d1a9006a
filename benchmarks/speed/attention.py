"""What vLLM's CPU attention kernel takes by itself: no request with a context is faster than this.

``python -m benchmarks.speed.attention --new 1,16,24 --cached 4000``: milliseconds of a forward pass's
attention, all layers one after the other on one core, in bfloat16. Each layer has a KV cache of its own, as
in a model.
"""

from __future__ import annotations

import argparse
import os
import time

from benchmarks.harness.spread import Spread


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new", default="1,8,16,24,64", help="query tokens (default: %(default)s)")
    parser.add_argument(
        "--cached", default="1000,4000,8000", help="tokens before them (default: %(default)s)"
    )
    parser.add_argument("--block-size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--layers", type=int, default=30, help="(default: %(default)s, the embedded model's)")
    parser.add_argument("--heads", type=int, nargs=3, default=(9, 3, 64), help="query, KV, size")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| cached | new | ms |\n|---|---|---|")
    for cached in map(int, args.cached.split(",")):
        for new in map(int, args.new.split(",")):
            spread = measure(new, cached, args.block_size, args.layers, *args.heads)
            print(f"| {cached} | {new} | {spread.text(1)} |", flush=True)


def measure(
    new: int, cached: int, block_size: int, layers: int, heads: int, kv_heads: int, size: int
) -> Spread:
    """Milliseconds for ``new`` tokens of one request behind ``cached`` ones."""
    import torch
    import vllm._custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    torch.set_num_threads(1)
    torch.cpu._init_amx()
    isa = _get_attn_isa(torch.bfloat16, block_size, size)
    num_blocks = -(-(cached + new) // block_size)
    shape = (num_blocks, kv_heads, 2 * block_size, size)
    caches = [torch.randn(shape, dtype=torch.bfloat16).chunk(2, dim=2) for _ in range(layers)]
    query = torch.randn(new, heads, size, dtype=torch.bfloat16)
    seq_lens = torch.tensor([cached + new], dtype=torch.int32)
    starts = torch.tensor([0, new], dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        seq_lens=seq_lens,
        dtype=query.dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=True,
    )
    samples = []
    for _ in range(15):
        started = time.perf_counter()
        for keys, values in caches:
            ops.cpu_attention_with_kv_cache(
                query=query,
                key_cache=keys,
                value_cache=values,
                output=torch.empty_like(query),
                query_start_loc=starts,
                seq_lens=seq_lens,
                scale=size**-0.5,
                causal=True,
                alibi_slopes=None,
                sliding_window=-1,
                block_table=torch.arange(num_blocks, dtype=torch.int32)[None],
                softcap=0.0,
                scheduler_metadata=plan,
                s_aux=None,
            )
        samples.append((time.perf_counter() - started) * 1e3)
    return Spread.of(samples[3:])


if __name__ == "__main__":
    main()
