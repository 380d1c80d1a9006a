"""Bodies of requests to /v1/prompt_cache, read with a limit and checked."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError

from vllm_promptcache.errors import TOO_LARGE
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.server.errors import wrong_body

# JSON may write a character in up to six times the bytes it has in UTF-8: as \u00xx.
_JSON_GROWTH = 6
_JSON_EXTRA = 4096


class SchemaBody(BaseModel):
    """A registration as JSON."""

    model_config = ConfigDict(extra="forbid")

    pml: str
    pin: bool = False
    ttl: float | None = None


class ModulesBody(BaseModel):
    """Modules by their paths; all of the schema's without it."""

    model_config = ConfigDict(extra="forbid")

    modules: list[str] | None = None


Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """A body of at most so many bytes; a longer one is refused before it is read. Raises RefusedError."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, model: type[Body], max_document_bytes: int) -> Body:
    """A JSON body with a document in it. Raises RefusedError."""
    body = await read_body(request, max_document_bytes * _JSON_GROWTH + _JSON_EXTRA)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise wrong_body(error) from None


def is_json(request: Request) -> bool:
    """Whether a body says that it is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(f"the body is larger than {max_bytes} bytes", TOO_LARGE, kind="PMLError")
