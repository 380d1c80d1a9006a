"""A batch's attention metadata with a row for each run of new tokens, instead of one for each request."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm_promptcache.blocks.rows import Rows


def present(common: Any, rows: Rows, device: torch.device) -> Any:
    """vLLM's ``CommonAttentionMetadata`` of a batch as an attention backend is to see it.

    Whatever has an entry a request has one a row, and whatever was derived from them is derived anew. A row's
    table is the shared blocks it keeps, then the request's private ones: of `Rows.all_shared_blocks` the
    last ones are skipped.
    """
    table = common.block_table_tensor
    requests, shared, seq_lens, skipped = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (
            rows.requests,
            rows.shared_blocks,
            rows.seq_lens,
            rows.all_shared_blocks - rows.shared_blocks,
        )
    )
    columns = torch.arange(table.shape[1], device=device).expand(len(requests), -1)
    columns = columns + torch.where(columns >= shared[:, None], skipped[:, None], 0)
    query_start = torch.from_numpy(np.concatenate(([0], np.cumsum(rows.query_lens))).astype(np.int32))
    prefilling, indices = common.is_prefilling, common.req_idx
    return common.replace(
        query_start_loc=query_start.to(device, non_blocking=True),
        query_start_loc_cpu=query_start,
        seq_lens=seq_lens.to(common.seq_lens.dtype),
        seq_lens_cpu_upper_bound=torch.from_numpy(rows.seq_lens.astype(np.int32)),
        num_reqs=len(rows.requests),
        max_query_len=int(rows.query_lens.max()),
        max_seq_len=int(rows.seq_lens.max()),
        block_table_tensor=table[requests].gather(1, columns.clamp_(max=table.shape[1] - 1)),
        is_prefilling=None if prefilling is None else prefilling[torch.from_numpy(rows.requests)],
        req_idx=None if indices is None else indices[rows.requests],
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )
