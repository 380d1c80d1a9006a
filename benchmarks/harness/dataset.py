"""A data set type of vLLM's serving benchmark: requests that may carry PML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.benchmarks.datasets import BenchmarkDataset, SampleRequest

from benchmarks.harness.ask import CHAT, Ask


class PMLDataset(BenchmarkDataset):
    """Requests whose bodies have a field more, ``pml``."""

    def __init__(self, asks: Iterable[Ask], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data: list[Ask] = list(asks)

    def sample(self, tokenizer: Any = None, num_requests: int | None = None, **_: Any) -> list[SampleRequest]:  # type: ignore[override]
        """The first ``num_requests`` requests, all by default."""
        return [to_sample(ask) for ask in self.data[:num_requests]]


def to_sample(ask: Ask) -> SampleRequest:
    """A request as vLLM's serving benchmark takes it."""
    chat: Any = ask.prompt if ask.path == CHAT else None
    return SampleRequest(
        prompt="" if chat is not None else ask.prompt,
        prompt_len=ask.num_prompt_tokens,
        expected_output_len=ask.num_answer_tokens,
        chat_messages=chat,
        request_overrides=ask.fields,
    )
