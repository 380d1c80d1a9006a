"""Requests over HTTP with streaming, made and timed by vLLM's own serving benchmark.

``vllm bench serve`` has no way to register a dataset, so its functions are called instead: a data set
type for PML whose requests carry ``pml`` as one more field of the body, its request function for one
request at a time, and its ``benchmark`` for many at once. vLLM takes seconds to import: not before needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from benchmarks.harness.ask import CHAT, COMPLETIONS, Ask
from benchmarks.harness.servers import MODEL_NAME, Server, ServerError

# vLLM's names for the two request functions.
BACKENDS = {COMPLETIONS: "openai", CHAT: "openai-chat"}


@dataclass(frozen=True)
class Answer:
    """What came back, in milliseconds: to the first token, between later ones, to the end."""

    ttft_ms: float
    between_ms: tuple[float, ...]
    latency_ms: float
    num_answer_tokens: int
    text: str

    @property
    def tpot_ms(self) -> float:
        """Mean time per output token after the first one."""
        return (self.latency_ms - self.ttft_ms) / max(self.num_answer_tokens - 1, 1)


class Client:
    """One request at a time, over connections that are kept alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Client:
        from vllm.benchmarks.lib.endpoint_request_func import AIOHTTP_TIMEOUT

        async def open_session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(timeout=AIOHTTP_TIMEOUT)

        self._session = self._loop.run_until_complete(open_session())
        return self

    def __exit__(self, *_: object) -> None:
        assert self._session is not None
        self._loop.run_until_complete(self._session.close())
        self._loop.close()

    def ask(self, server: Server, ask: Ask) -> Answer:
        """Ask and wait for the whole answer.

        Raises:
            ServerError: there is none.
        """
        from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS, RequestFuncInput

        from benchmarks.harness.dataset import to_sample

        sample = to_sample(ask)
        request = RequestFuncInput(
            prompt=sample.prompt,
            api_url=server.url + ask.path,
            prompt_len=ask.num_prompt_tokens,
            output_len=ask.num_answer_tokens,
            model=MODEL_NAME,
            extra_body=sample.request_overrides,
            chat_messages=sample.chat_messages,
        )
        assert self._session is not None
        asked: Any = ASYNC_REQUEST_FUNCS[BACKENDS[ask.path]](request, self._session)
        return _answer(self._loop.run_until_complete(asked), server)


def ask_in_turn(asks: Sequence[tuple[Server, Ask]]) -> list[Answer]:
    """One request after another, each to its server."""
    with Client() as client:
        return [client.ask(server, ask) for server, ask in asks]


def _answer(output: Any, server: Server) -> Answer:
    if not output.success:
        server.check_alive()
        raise ServerError(f"{server.name} did not answer: {output.error}; see {server.log}")
    return Answer(
        output.ttft * 1e3,
        tuple(t * 1e3 for t in output.itl),
        output.latency * 1e3,
        output.output_tokens or 0,
        output.generated_text,
    )


@dataclass(frozen=True)
class Burst:
    """What vLLM's serving benchmark says of many requests."""

    seconds: float
    num_requests: int
    num_answer_tokens: int
    ttfts_ms: tuple[float, ...]
    tpots_ms: tuple[float, ...]
    median_between_ms: float

    @property
    def requests_per_s(self) -> float:
        """Throughput."""
        return self.num_requests / self.seconds

    def to_json(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "seconds": self.seconds,
            "requests_per_s": self.requests_per_s,
            "answer_tokens_per_s": self.num_answer_tokens / self.seconds,
            "median_between_ms": self.median_between_ms,
            "ttfts_ms": [round(t, 3) for t in self.ttfts_ms],
            "tpots_ms": [round(t, 4) for t in self.tpots_ms],
        }


def ask_at_once(server: Server, asks: Sequence[Ask], concurrency: int) -> Burst:
    """All requests, so many at a time: ``vllm bench serve --max-concurrency``."""
    from vllm.benchmarks.serve import TaskType, benchmark

    from benchmarks.harness.dataset import PMLDataset

    samples = PMLDataset(asks).sample()
    with contextlib.redirect_stdout(io.StringIO()):
        result = asyncio.run(
            benchmark(
                task_type=TaskType.GENERATION,
                endpoint_type=BACKENDS[asks[0].path],
                api_url=server.url + asks[0].path,
                base_url=server.url,
                model_id=MODEL_NAME,
                model_name=MODEL_NAME,
                tokenizer=None,
                input_requests=samples,
                logprobs=None,
                request_rate=float("inf"),
                burstiness=1.0,
                disable_tqdm=True,
                num_warmups=0,
                profile=False,
                selected_percentile_metrics=["ttft", "tpot"],
                selected_percentiles=[99.0],
                ignore_eos=True,
                goodput_config_dict={},
                max_concurrency=concurrency,
                lora_modules=None,
                extra_headers=None,
                extra_body=None,
                ready_check_timeout_sec=0,
            )
        )
    if result["failed"]:
        server.check_alive()
        errors = [error for error in result["errors"] if error]
        raise ServerError(f"{server.name}: {result['failed']} of {len(asks)} requests failed: {errors[:1]}")
    later = [sum(itl) / len(itl) * 1e3 for itl in result["itls"] if itl]
    return Burst(
        result["duration"],
        result["completed"],
        result["total_output_tokens"],
        tuple(t * 1e3 for t in result["ttfts"]),
        tuple(later),
        float(np.median([t * 1e3 for itl in result["itls"] for t in itl] or [0.0])),
    )


@dataclass(frozen=True)
class Reuse:
    """What the server says a request reused, and how many modules it had to encode for it."""

    num_tokens: int
    num_encoded: int


def cached_tokens(server: Server, ask: Ask) -> int:
    """Ask once: how many tokens does the server say it reused?"""
    return reuse(server, ask).num_tokens


def reuse(server: Server, ask: Ask) -> Reuse:
    """Ask once, untimed and without streaming.

    Tokens of modules that were encoded for the very request are not among those reused.
    """
    body: dict[str, Any] = {"model": MODEL_NAME, **ask.fields}
    body["messages" if ask.path == CHAT else "prompt"] = ask.prompt
    body["max_tokens"] = ask.num_answer_tokens
    answer = server.call("POST", ask.path, body)
    num_tokens = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    report = answer.get("prompt_cache") or {}
    return Reuse(int(num_tokens + report.get("tokens_encoded", 0)), int(report.get("modules_encoded", 0)))
