"""A logits processor that makes the engine write given tokens, and keeps first-token distributions.

vLLM reports log-probabilities as they were before logits processors (``logprobs_mode`` is
``raw_logprobs`` by default), so a forced token comes with the log-probability that the model gave it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

FORCED = "forced_token_ids"
KEPT = "keep_first_token_as"


class Forcing(LogitsProcessor):
    """Reads two entries of a request's ``extra_args``.

    ``forced_token_ids``: the tokens it writes, whatever the model says; after the last one it is free.
    ``keep_first_token_as``: a name under which the log-probabilities of its first token, float32
    ``(vocabulary,)``, are found in `first_tokens`, if the engine runs in this process.
    """

    first_tokens: ClassVar[dict[str, NDArray[np.float32]]] = {}

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, tuple[dict[str, Any], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it is there to change what greedy sampling takes."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests through the rows of the batch."""
        if batch_update is None:
            return
        requests = self._requests
        for index in batch_update.removed:
            requests.pop(index, None)
        for index, params, _, output_token_ids in batch_update.added:
            requests.pop(index, None)
            if _is_meant(params):
                assert params.extra_args is not None
                requests[index] = (params.extra_args, output_token_ids)
        for source, target, direction in batch_update.moved:
            moved, other = requests.pop(source, None), requests.pop(target, None)
            if moved is not None:
                requests[target] = moved
            if other is not None and direction == MoveDirectionality.SWAP:
                requests[source] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Force, and keep. ``logits`` has shape ``(requests, vocabulary)``."""
        for row, (extra_args, output_token_ids) in self._requests.items():
            step = len(output_token_ids)
            if step == 0 and KEPT in extra_args:
                # A step that computes only a part of the prompt comes here too; the last one stays.
                first = torch.log_softmax(logits[row].float(), -1)
                self.first_tokens[extra_args[KEPT]] = first.cpu().numpy()
            forced = extra_args.get(FORCED, ())
            if step < len(forced):
                logits[row] = -torch.inf
                logits[row, forced[step]] = 0.0
        return logits


def _is_meant(params: SamplingParams) -> bool:
    return params.extra_args is not None and not {FORCED, KEPT}.isdisjoint(params.extra_args)
