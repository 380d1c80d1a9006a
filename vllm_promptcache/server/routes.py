"""The routes under /v1/prompt_cache: manage schemas, explain prompts, statistics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from vllm.entrypoints.serve.engine.protocol import ErrorResponse

from vllm_promptcache.errors import PMLError, unknown
from vllm_promptcache.frontend.describe import details, summary
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import NOT_FOUND, RefusedError
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.frontend.ttl import seconds_of
from vllm_promptcache.server import pools
from vllm_promptcache.server.answers import answer_modules, answer_plans
from vllm_promptcache.server.bodies import (
    MAX_NAMES_BYTES,
    ModulesBody,
    SaltBody,
    is_json,
    json_bytes,
    read_body,
    read_json,
    read_object,
    registration_of,
)
from vllm_promptcache.server.chat import PromptCacheChatRequest
from vllm_promptcache.server.completion import PromptCacheCompletionRequest
from vllm_promptcache.server.disconnect import while_connected
from vllm_promptcache.server.errors import json_error, wrong_body
from vllm_promptcache.server.services import managed, service_of

router = APIRouter(prefix="/v1/prompt_cache", tags=["prompt cache"])


def attach_routes(app: FastAPI) -> None:
    """Add the routes, and answers to what they refuse."""
    app.include_router(pools.router)
    app.include_router(router)
    for error in (PMLError, RefusedError):
        app.add_exception_handler(error, _answer_refusal)


async def _answer_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, (PMLError, RefusedError))
    return json_error(error)


async def _answer(service: PromptCacheService, *entries: SchemaEntry, status_code: int = 200) -> Response:
    """One schema as itself, several as a list."""
    described = [(entry, await service.registry.status(entry)) for entry in entries]

    def make() -> Any:
        found = [details(entry, status) for entry, status in described]
        return found[0] if len(found) == 1 else {"object": "list", "data": found}

    num_modules = sum(len(entry.layout.modules) for entry in entries)
    return await answer_modules(service.registry.connection, num_modules, make, status_code)


@router.post("/schemas", status_code=201)
async def register(request: Request, pin: bool = False) -> Response:
    """Register the schemas of a document: 201, or 200 where all of them are known as they are.

    The body is PML, or JSON with ``pml`` or a schema in the JSON form, ``pin`` and ``ttl``. One schema is
    answered as itself, several as a list.
    """
    service = await managed(request)
    max_bytes = service.config.max_document_bytes
    document: str | bytes | dict[str, Any]
    if is_json(request):
        body = await read_object(request, json_bytes(max_bytes), service.registry.connection)
        registration, document = registration_of(body)
        ttl = seconds_of(registration.ttl)
        pin, where = registration.pin or pin, "pml" if isinstance(document, str) else "body"
    else:
        document, where, ttl = await read_body(request, max_bytes), "body", None
    registered = await service.registry.register(document, where=where, pin=pin, ttl=ttl)
    return await _answer(service, *registered.entries, status_code=201 if registered.is_new else 200)


@router.get("/schemas")
async def list_schemas(request: Request) -> dict[str, Any]:
    """All schemas in short, by name."""
    entries = (await service_of(request)).registry.entries
    return {"object": "list", "data": [summary(entries[name]) for name in sorted(entries)]}


@router.get("/schemas/{name}")
async def get_schema(request: Request, name: str) -> Response:
    """One schema with its modules, their spans and residency."""
    service = await service_of(request)
    return await _answer(service, service.registry[name])


@router.delete("/schemas/{name}")
async def delete_schema(request: Request, name: str) -> dict[str, Any]:
    """Unregister a schema; its blocks are freed when the last request using them ends."""
    await (await managed(request)).registry.remove(name)
    return {"object": "prompt_cache.schema", "name": name, "deleted": True}


@router.post("/schemas/{name}/{operation}")
async def change_residency(request: Request, name: str, operation: str) -> Response:
    """``pin``, ``unpin`` or ``warm`` a schema, or the modules named in the body."""
    service = await managed(request)
    registry = service.registry
    operations = {"pin": registry.pin, "unpin": registry.unpin, "warm": registry.warm}
    if operation not in operations:
        raise RefusedError(unknown("operation", operation, operations), NOT_FOUND)
    body = await read_json(request, ModulesBody, MAX_NAMES_BYTES, registry.connection)
    change = operations[operation](name, body.modules)
    # What changes is all or nothing; encoding ahead is nobody's once its client is gone.
    await (while_connected(request, change) if operation == "warm" else change)
    return await _answer(service, registry[name])


@router.post("/explain")
async def explain(request: Request) -> Response:
    """The plan of exactly what a chat or completions request would run; a list for several prompts."""
    service, state = await service_of(request), request.app.state
    connection = service.registry.connection
    body = await read_object(request, json_bytes(service.config.max_document_bytes), connection)
    prompts = await _explained(state, body)
    if isinstance(prompts, ErrorResponse):
        return JSONResponse(prompts.model_dump(), status_code=prompts.error.code)
    plans = [prompt.plan for prompt in prompts]
    model = body.get("model")
    is_shared = body.get("cache_salt") is None and (
        model is None or state.openai_serving_models.is_base_model(model)
    )
    lookups = [await service.composer.lookup(plan, is_shared=is_shared) for plan in plans]
    return await answer_plans(connection, plans, lookups)


async def _explained(state: Any, body: dict[str, Any]) -> Any:
    try:
        if "messages" in body:
            return await state.openai_serving_chat.explain(PromptCacheChatRequest.model_validate(body))
        completion = PromptCacheCompletionRequest.model_validate(body)
    except ValidationError as error:
        raise wrong_body(error) from None
    return await state.openai_serving_completion.explain(completion)


@router.get("/stats")
async def stats(request: Request, tenants: bool = False) -> dict[str, Any]:
    """Units and blocks by use, limits, and the number of schemas, without what belongs to a salt; or, for who
    may manage, all there is, and what is each tenant's."""
    if tenants:
        return await (await managed(request)).registry.stats(tenants=True)
    return await (await service_of(request)).registry.stats(public=True)


@router.post("/stats")
async def tenant_stats(request: Request) -> dict[str, Any]:
    """What is of the tenant whose ``cache_salt`` the body has, and nobody else's."""
    service = await service_of(request)
    body = await read_json(request, SaltBody, MAX_NAMES_BYTES, service.registry.connection)
    return await service.registry.stats(tenant=body.cache_salt)
