"""How a server ends when its engine has: clients get an answer, and none of them keeps the process alive."""

from __future__ import annotations

import asyncio
from typing import Any

import vllm.envs as envs
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.launchers.launcher import terminate_if_errored
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.v1.engine.exceptions import EngineDeadError

from vllm_promptcache.compat.ending import engine_ended

SERVICE_UNAVAILABLE = 503
# What clients have, once the engine is gone, to read their last words.
GRACE_S = 3

_WAIT_S = 0.1
_watching: set[asyncio.Task[None]] = set()


def answer_without_engine(app: FastAPI) -> None:
    """Answer 503 to whoever waits for an engine that has ended, or asks for it afterwards."""
    app.add_exception_handler(EngineDeadError, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    what = "the engine has ended, and the server ends with it"
    info = ErrorInfo(message=what, type="ServiceUnavailableError", code=SERVICE_UNAVAILABLE)
    return JSONResponse(ErrorResponse(error=info).model_dump(), status_code=SERVICE_UNAVAILABLE)


def end_with_engine(engine_client: Any, state: Any) -> None:
    """End the server soon after its engine, as vLLM's watchdog would: without its wait, and without
    waiting for clients that neither send nor read. ``state`` is the app's."""
    task = asyncio.create_task(_end(engine_client, state))
    _watching.add(task)  # the loop itself holds tasks weakly
    task.add_done_callback(_watching.discard)


async def _end(engine_client: Any, state: Any) -> None:
    await engine_ended(engine_client)
    while (server := getattr(state, "server", None)) is None:  # it starts
        await asyncio.sleep(_WAIT_S)
    if server.config.timeout_graceful_shutdown is None:
        server.config.timeout_graceful_shutdown = GRACE_S
    while not server.should_exit and not envs.VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:
        terminate_if_errored(server, engine_client)
        await asyncio.sleep(_WAIT_S)
