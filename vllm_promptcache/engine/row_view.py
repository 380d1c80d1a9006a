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
    last ones are skipped. Where a row ends with its request, it is as long as ``common`` says: drafts may
    be accepted that only the device knows of. A drafter has tokens more than the step that it follows.
    """
    table = common.block_table_tensor
    requests, shared, skipped, ends_request = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (
            rows.requests,
            rows.shared_blocks,
            rows.all_shared_blocks - rows.shared_blocks,
            rows.ends_request.astype(bool),
        )
    )
    missing = rows.missing(np.diff(common.query_start_loc_cpu.numpy()))
    query_lens, covered = rows.query_lens + missing, (rows.seq_lens + missing).astype(np.int32)
    if common.seq_lens_cpu_upper_bound is not None:
        bound = common.seq_lens_cpu_upper_bound.numpy()[rows.requests]
        covered = np.where(rows.ends_request, bound, covered)
    seq_lens = torch.from_numpy(covered).to(device, non_blocking=True)
    seq_lens = torch.where(ends_request, common.seq_lens[requests], seq_lens)
    columns = torch.arange(table.shape[1], device=device).expand(len(requests), -1)
    columns = columns + torch.where(columns >= shared[:, None], skipped[:, None], 0)
    query_start = torch.from_numpy(np.concatenate(([0], np.cumsum(query_lens))).astype(np.int32))
    prefilling, indices = common.is_prefilling, common.req_idx
    return common.replace(
        query_start_loc=query_start.to(device, non_blocking=True),
        query_start_loc_cpu=query_start,
        seq_lens=seq_lens,
        seq_lens_cpu_upper_bound=torch.from_numpy(covered),
        num_reqs=len(rows.requests),
        max_query_len=int(query_lens.max()),
        max_seq_len=int(covered.max()),
        block_table_tensor=table[requests].gather(1, columns.clamp_(max=table.shape[1] - 1)),
        is_prefilling=None if prefilling is None else prefilling[torch.from_numpy(rows.requests)],
        req_idx=None if indices is None else indices[rows.requests],
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )
