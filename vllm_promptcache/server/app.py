"""What is added to vLLM's API server."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from vllm.entrypoints.openai.chat_completion import api_router as chat_api
from vllm.entrypoints.openai.chat_completion import serving as chat_serving
from vllm.entrypoints.openai.completion import api_router as completion_api
from vllm.entrypoints.openai.completion import serving as completion_serving
from vllm.renderers.chat_utils import load_chat_template

from vllm_promptcache.frontend.service import open_service
from vllm_promptcache.frontend.tokenizer import open_encoder
from vllm_promptcache.pml.nodes import SchemaNode
from vllm_promptcache.server import refusing
from vllm_promptcache.server.chat import PromptCacheChatRequest, PromptCacheServingChat
from vllm_promptcache.server.completion import PromptCacheCompletionRequest, PromptCacheServingCompletion
from vllm_promptcache.server.connection import AsyncEngineConnection
from vllm_promptcache.server.ending import answer_without_engine, end_with_engine
from vllm_promptcache.server.metrics import extend_metrics
from vllm_promptcache.server.routes import attach_routes
from vllm_promptcache.server.services import STATE
from vllm_promptcache.server.watch import keep_watch

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def extend(app: FastAPI) -> None:
    """Add the routes to an app that has all of vLLM's, and have vLLM's mind PML."""
    attach_routes(app)
    answer_without_engine(app)
    extend_metrics(app)
    routes = app.router.routes
    for index, route in enumerate(routes):
        if not isinstance(route, APIRoute) or "POST" not in route.methods:
            continue
        if route.path in (CHAT, COMPLETIONS):
            routes[index] = _minding_pml(route)
        elif refusing.refuses(route):
            routes[index] = refusing.refusing(route)


def _minding_pml(route: APIRoute) -> APIRoute:
    """The route for requests that may have PML. Its handler stays vLLM's: the request's model is another."""
    return APIRoute(
        route.path,
        _create_chat_completion if route.path == CHAT else _create_completion,
        methods=["POST"],
        dependencies=route.dependencies,
        responses=route.responses,
    )


async def _create_chat_completion(request: PromptCacheChatRequest, raw_request: Request) -> Any:
    return await chat_api.create_chat_completion(request, raw_request)


async def _create_completion(request: PromptCacheCompletionRequest, raw_request: Request) -> Any:
    return await completion_api.create_completion(request, raw_request)


async def open_server(
    schemas: list[tuple[str, SchemaNode]], engine_client: Any, state: Any, args: Any
) -> dict[tuple[Any, str], Any]:
    """Open the front end before anything is served.

    Returns what vLLM is to construct instead of its serving classes, by module and name.

    Raises:
        PMLError: with the mistakes of all schemas that do not fit the model.
        EngineDeadError: the engine ended while they were encoded.
    """
    end_with_engine(engine_client, state)
    encoder = open_encoder(engine_client.renderer, load_chat_template(args.chat_template))
    connection = AsyncEngineConnection(engine_client)
    service = await open_service(connection, engine_client.vllm_config, encoder, schemas)
    setattr(state, STATE, service)
    keep_watch(service)
    return {
        (chat_serving, "OpenAIServingChat"): partial(PromptCacheServingChat, service),
        (completion_serving, "OpenAIServingCompletion"): partial(PromptCacheServingCompletion, service),
    }
