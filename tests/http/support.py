"""The routes over a front end without a model: real HTTP handling, the scheduler's own store and control."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from tests.frontend.support import FrontEnd
from vllm_promptcache.server.routes import attach_routes
from vllm_promptcache.server.services import STATE

T = TypeVar("T")


class Client:
    """A client of /v1/prompt_cache. Every call has an event loop of its own."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.app = FastAPI()
        attach_routes(self.app)
        setattr(self.app.state, STATE, front_end.service)

    def get(self, path: str) -> httpx.Response:
        return self._run(lambda client: client.get(path))

    def delete(self, path: str) -> httpx.Response:
        return self._run(lambda client: client.delete(path))

    def post(self, path: str, body: Any = None) -> httpx.Response:
        """A body in XML where it is text, else as JSON."""
        if isinstance(body, str):
            headers = {"content-type": "application/xml"}
            return self._run(lambda client: client.post(path, content=body.encode(), headers=headers))
        return self._run(lambda client: client.post(path, json=body))

    def _run(self, ask: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        async def run() -> T:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://x/v1/prompt_cache") as client:
                return await ask(client)

        return asyncio.run(run())


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, type and message of what is refused."""
    error = json.loads(answer.content)["error"]
    assert error["code"] == answer.status_code
    return error["code"], error["type"], error["message"]
