"""The routes of pools' members: /v1/prompt_cache/schemas/{schema}/pools/{pool}/modules, and one by its name.

Names are any text, percent-encoded: they are read from the path as it was sent, where `%2F` is no `/`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_promptcache.frontend.errors import NOT_FOUND, RefusedError
from vllm_promptcache.frontend.members import NewMember, described, first_members
from vllm_promptcache.frontend.pools import AT_ONCE, Put, problem_of
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.frontend.ttl import seconds_of
from vllm_promptcache.server.bodies import is_json, json_bytes, read_body
from vllm_promptcache.server.errors import wrong_body
from vllm_promptcache.server.services import managed, service_of

MAX_PAGE = 1000
_PATH = "/schemas/{schema}/pools/{rest:path}"
_MODULES, _BATCH = "modules", "modules:batch"
Name = Annotated[str, Field(min_length=1, max_length=512)]

Body = TypeVar("Body", bound=BaseModel)

router = APIRouter(prefix="/v1/prompt_cache", tags=["prompt cache"])


class MemberBody(BaseModel):
    """A member as JSON; its name is in the path."""

    model_config = ConfigDict(extra="forbid")

    text: str
    ttl: float | str | None = None
    pin: bool = False


class NamedMemberBody(MemberBody):
    """A line of a batch."""

    name: Name


@router.put(_PATH)
async def put_member(request: Request) -> JSONResponse:
    """Register a member: text, or JSON with ``text``, ``ttl`` and ``pin``. 201, or 200 where it was there."""
    service = await managed(request)
    schema, pool, name = _member_of(request)
    body = await read_body(request, json_bytes(service.config.max_document_bytes))
    said = _said(name, _parse(MemberBody, body)) if is_json(request) else NewMember(name, _text(body))
    (put,) = await service.pools.put(schema, pool, [said])
    if put.error is not None:
        raise problem_of(put)
    member = service.pools.member(schema, pool, name)
    status = await service.registry.status_of([member.unit.placement])
    code = 201 if put.status == "registered" else 200
    return JSONResponse({**described(member, status.__getitem__), "status": put.status}, status_code=code)


@router.get(_PATH)
async def get_members(request: Request, after: str | None = None, limit: int = 100) -> dict[str, Any]:
    """One member; or the registered members of a pool by name, at most ``limit`` of them behind ``after``."""
    service = await service_of(request)
    schema, pool, name = _address(request)
    entry, layout = service.pools.pool(schema, pool)
    if name is not None:
        member = service.pools.member(schema, pool, name)
        status = await service.registry.status_of([member.unit.placement])
        return described(member, status.__getitem__)
    if not 1 <= limit <= MAX_PAGE:
        raise RefusedError(f"limit must be from 1 to {MAX_PAGE}", field="limit")
    all_members = entry.members.of(layout.path)
    members, has_more = first_members(all_members, after, limit)
    status = await service.registry.status_of([member.unit.placement for member in members])
    return {
        "object": "list",
        "data": [described(member, status.__getitem__) for member in members],
        "has_more": has_more,
        "last_name": members[-1].said.name if members else None,
        "total": len(all_members),
        "encoding": asdict(service.pools.progress(layout)),
    }


@router.delete(_PATH)
async def delete_member(request: Request) -> dict[str, Any]:
    """Unregister a member; its blocks are freed when the last request using them ends."""
    service = await managed(request)
    schema, pool, name = _member_of(request)
    await service.pools.remove(schema, pool, name)
    return {"object": "prompt_cache.module", "name": name, "deleted": True}


@router.post(_PATH)
async def put_many(request: Request) -> StreamingResponse:
    """Register members, a JSON object a line (``name``, ``text``, ``ttl``, ``pin``), answered line by line.

    They are encoded in the background. A line that is wrong is told of, and the others are registered.
    """
    service = await managed(request)
    schema, pool, name = _address(request, _BATCH)
    if name is not None:
        raise _nothing_here(request)
    service.pools.pool(schema, pool)
    body = await read_body(request, json_bytes(service.config.max_document_bytes))
    return StreamingResponse(_batch(service, schema, pool, body), media_type="application/jsonl")


async def _batch(service: PromptCacheService, schema: str, pool: str, body: bytes) -> AsyncIterator[str]:
    lines = [line for line in body.splitlines() if line.strip()]
    registered: list[str] = []
    for first in range(0, len(lines), AT_ONCE):
        some = lines[first : first + AT_ONCE]
        read = await service.registry.connection.run(partial(_lines, some))
        try:
            found = await service.pools.put(schema, pool, [one for one in read if isinstance(one, NewMember)])
        except RefusedError as refusal:
            yield (
                json.dumps({"status": "refused", "error": str(refusal), "lines_left": len(lines) - first})
                + "\n"
            )
            break
        puts = iter(found)
        answers = [
            next(puts) if isinstance(one, NewMember) else Put("", "refused", error=one) for one in read
        ]
        registered += [put.name for put in answers if put.status in ("registered", "replaced")]
        yield "".join(_answers(answers, first))
    service.pools.encode_ahead(schema, pool, registered)


def _answers(puts: list[Put], first: int) -> Iterator[str]:
    for index, put in enumerate(puts):
        said: dict[str, Any] = {"line": first + index + 1, "name": put.name, "status": put.status}
        said |= {"error": put.error} if put.error is not None else {"tokens": put.num_tokens}
        yield json.dumps(said) + "\n"


def _lines(lines: list[bytes]) -> list[NewMember | str]:
    return [_line(line) for line in lines]


def _line(line: bytes) -> NewMember | str:
    """A line of a batch, or what is wrong with it."""
    try:
        body = _parse(NamedMemberBody, line)
        return _said(body.name, body)
    except RefusedError as refusal:
        return str(refusal)


def _parse(model: type[Body], body: bytes) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise wrong_body(error) from None


def _said(name: str, body: MemberBody) -> NewMember:
    return NewMember(name, body.text, seconds_of(body.ttl), body.pin)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise RefusedError("the body is not UTF-8") from None


def _member_of(request: Request) -> tuple[str, str, str]:
    """A member's schema, pool and name. Raises RefusedError (404) where the path names none."""
    schema, pool, name = _address(request)
    if name is None:
        raise _nothing_here(request)
    return schema, pool, name


def _address(request: Request, last: str = _MODULES) -> tuple[str, str, str | None]:
    """What a path names: a schema, one of its pools, and the name of a member, if there is one."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    steps = raw.decode("latin-1").partition("?")[0].split("/")
    rest = steps[steps.index("schemas") + 1 :]
    if len(rest) < 4 or rest[1] != "pools" or unquote(rest[3]) != last:
        raise _nothing_here(request)
    name = "/".join(map(unquote, rest[4:])) or None
    return unquote(rest[0]), unquote(rest[2]), name


def _nothing_here(request: Request) -> RefusedError:
    return RefusedError(f"there is nothing at {request.url.path}", NOT_FOUND)
