"""A data set type of vLLM's serving benchmark: requests that may carry PML."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm.benchmarks.datasets import BenchmarkDataset, SampleRequest

from benchmarks.ask import CHAT, Ask


class PMLDataset(BenchmarkDataset):
    """Requests whose bodies have a field more, ``pml``.

    ``dataset_path`` is a JSONL file of ``{"prompt", "prompt_len", "output_len", "body": {"pml": …}}``;
    or give the requests themselves.
    """

    def __init__(self, asks: Iterable[Ask] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data: list[Ask] = list(asks) if asks is not None else self._read()

    def _read(self) -> list[Ask]:
        lines = Path(str(self.dataset_path)).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [Ask(r["prompt"], r["prompt_len"], r["output_len"], r.get("body", {})) for r in rows]

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
