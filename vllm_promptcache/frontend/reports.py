"""What the engine reports of composed requests, put into the answers that users see."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from vllm.entrypoints.serve.engine.protocol import PromptTokenUsageInfo
from vllm.outputs import RequestOutput

from vllm_promptcache.blocks.wire import EXTRA_ARG

RESPONSE_FIELD = "prompt_cache"
_END = "data: [DONE]\n\n"


class Reports:
    """The reports of one request's prompts, added up. ``num_prompts`` are expected.

    ``said`` is known before the engine's reports, and shown with them.
    """

    def __init__(self, num_prompts: int = 1, said: Mapping[str, Any] | None = None) -> None:
        self.counts: dict[str, int] = {}
        self._said = said or {}
        self._num_unfinished = num_prompts

    def take(self, output: RequestOutput) -> None:
        """Take the report out of an output: it travels where vLLM's KV connectors put theirs."""
        report = take_report(output)
        if output.finished:
            self._num_unfinished -= 1
            for name, count in (report or {}).items():
                self.counts[name] = self.counts.get(name, 0) + count

    async def watch(self, outputs: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        """Pass outputs on, or (index, output) pairs, without their reports."""
        async with aclosing(outputs) as source:  # type: ignore[type-var]
            async for item in source:
                self.take(item[1] if isinstance(item, tuple) else item)
                yield item

    def complete(self, response: Any) -> None:
        """Fill the usage and the report into a response."""
        if not (self.counts or self._said):
            return
        if self.counts and response.usage is not None:
            response.usage.prompt_tokens_details = PromptTokenUsageInfo(cached_tokens=self._num_cached)
        setattr(response, RESPONSE_FIELD, {**self.counts, **self._said})

    async def complete_stream(self, lines: AsyncIterator[str]) -> AsyncGenerator[str, None]:
        """Fill both into the last chunk of a stream of server-sent events.

        Chunks are held back only when every prompt is finished: none of them waits for a token.
        """
        held: str | None = None
        async with aclosing(lines) as source:  # type: ignore[type-var]
            async for line in source:
                if held is not None:
                    yield self._complete_chunk(held) if line == _END else held
                    held = None
                if self._num_unfinished or line == _END:
                    yield line
                else:
                    held = line
        if held is not None:
            yield held

    @property
    def _num_cached(self) -> int:
        return self.counts.get("tokens_reused", 0) + self.counts.get("tokens_found", 0)

    def _complete_chunk(self, line: str) -> str:
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk or not (self.counts or self._said):
            return line
        if self.counts and chunk.get("usage"):
            details = chunk["usage"].get("prompt_tokens_details") or {}
            chunk["usage"]["prompt_tokens_details"] = {**details, "cached_tokens": self._num_cached}
        chunk[RESPONSE_FIELD] = {**self.counts, **self._said}
        return f"data: {json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"


def take_report(output: RequestOutput) -> dict[str, int] | None:
    """Remove and return the engine's report from an output, if it has one."""
    params = output.kv_transfer_params
    if not params or EXTRA_ARG not in params:
        return None
    report: dict[str, int] = params[EXTRA_ARG]
    output.kv_transfer_params = {k: v for k, v in params.items() if k != EXTRA_ARG} or None
    return report
