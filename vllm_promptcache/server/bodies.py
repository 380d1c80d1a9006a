"""Bodies of requests to /v1/prompt_cache, read with a limit and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from vllm_promptcache.errors import TOO_LARGE
from vllm_promptcache.frontend.connection import SMALL_CHARACTERS, EngineConnection
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.pml.limits import DEFAULT_LIMITS
from vllm_promptcache.server.errors import wrong_body

# JSON may write a character in up to six times the bytes it has in UTF-8: as \u00xx.
_JSON_GROWTH = 6
_JSON_EXTRA = 4096
# What is named in one body: a schema has no more modules and scaffolds, and paths of a usual length.
MAX_NAMES = DEFAULT_LIMITS.max_modules + DEFAULT_LIMITS.max_scaffolds
MAX_NAMES_BYTES = 128 * MAX_NAMES


class SchemaBody(BaseModel):
    """A registration as JSON."""

    model_config = ConfigDict(extra="forbid")

    pml: str
    pin: bool = False
    ttl: float | str | None = None


class SchemaFormBody(BaseModel):
    """A registration in the JSON form, whose other fields are the schema."""

    model_config = ConfigDict(extra="allow")

    pin: bool = False
    ttl: float | str | None = None


def registration_of(body: dict[str, Any]) -> tuple[SchemaBody | SchemaFormBody, str | dict[str, Any]]:
    """A registration and its document: PML, or a schema in the JSON form. Raises RefusedError."""
    try:
        if "name" in body and "pml" not in body:
            form = SchemaFormBody.model_validate(body)
            return form, dict(form.model_extra or {})
        registration = SchemaBody.model_validate(body)
    except ValidationError as error:
        raise wrong_body(error) from None
    return registration, registration.pml


class ModulesBody(BaseModel):
    """Modules by their paths; all of the schema's without it."""

    model_config = ConfigDict(extra="forbid")

    modules: Annotated[list[str], Field(max_length=MAX_NAMES)] | None = None


class SaltBody(BaseModel):
    """A tenant, by its salt."""

    model_config = ConfigDict(extra="forbid")

    cache_salt: Annotated[str, Field(min_length=1)]


T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """A body of at most so many bytes; a longer one is refused before it is read. Raises RefusedError."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async for part in request.stream():
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect:  # nobody reads the answer; as an error it would be sixty lines of the log
        raise RefusedError("the body is not complete") from None
    return b"".join(parts)


def json_bytes(max_document_bytes: int) -> int:
    """How long a JSON body may be that holds a document."""
    return max_document_bytes * _JSON_GROWTH + _JSON_EXTRA


async def read_json(
    request: Request, model: type[Body], max_bytes: int, connection: EngineConnection
) -> Body:
    """A JSON body of at most so many bytes. Raises RefusedError."""
    body = await read_body(request, max_bytes)
    try:
        return await _read(body, lambda: model.model_validate_json(body or b"{}"), connection)
    except ValidationError as error:
        raise wrong_body(error) from None


async def read_object(request: Request, max_bytes: int, connection: EngineConnection) -> dict[str, Any]:
    """A body that is any JSON object. Raises RefusedError."""
    body = await read_body(request, max_bytes)
    try:
        value = await _read(body, lambda: json.loads(body), connection)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RefusedError("the body must be a JSON object")
    return value


async def _read(body: bytes, read: Callable[[], T], connection: EngineConnection) -> T:
    """Read a long body where others do not wait for it."""
    return read() if len(body) <= SMALL_CHARACTERS else await connection.run(read)


def is_json(request: Request) -> bool:
    """Whether a body says that it is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(f"the body is larger than {max_bytes} bytes", TOO_LARGE, kind="PMLError")
