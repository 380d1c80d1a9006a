"""Answers of /v1/prompt_cache: large ones are made where nobody waits for them, and bounded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi.responses import JSONResponse, Response

from vllm_promptcache.contract.explain import plan_parts, plan_size
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.frontend.connection import SMALL_MODULES, EngineConnection
from vllm_promptcache.frontend.errors import RefusedError

# A plan names every token, and in every unit all that it has seen: far more than was asked with.
MAX_EXPLAINED_BYTES = 8 * 1024 * 1024
_SMALL_BYTES = 64 * 1024


async def answer_modules(
    connection: EngineConnection, num_modules: int, make: Callable[[], Any], status_code: int = 200
) -> Response:
    """The answer ``make`` makes for so many modules."""
    if num_modules <= SMALL_MODULES:
        return JSONResponse(make(), status_code=status_code)
    return await connection.run(lambda: JSONResponse(make(), status_code=status_code))


async def answer_plans(
    connection: EngineConnection, plans: list[Plan], lookups: list[dict[str, Any]]
) -> Response:
    """One plan as itself, several as a list, each with what would be looked up for it.

    Raises:
        RefusedError: they are too large to be answered.
    """
    if sum(len(plan.units) for plan in plans) > SMALL_MODULES:
        size = await connection.run(lambda: sum(map(plan_size, plans)))
    else:
        size = sum(map(plan_size, plans))
    if size > MAX_EXPLAINED_BYTES:
        what = f"the plan takes about {size} bytes; at most {MAX_EXPLAINED_BYTES} are answered"
        raise RefusedError(f"{what}: include fewer modules, or explain it on the command line")
    if size <= _SMALL_BYTES:
        return _plans(plans, lookups)
    return await connection.run(lambda: _plans(plans, lookups))


def _plans(plans: list[Plan], lookups: list[dict[str, Any]]) -> Response:
    texts = ["".join(_dump(*one)) for one in zip(plans, lookups, strict=True)]
    body = texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"
    return Response(body, media_type="application/json")


def _dump(plan: Plan, lookup: dict[str, Any]) -> Iterator[str]:
    """A plan as JSON, part by part: other threads have their turn in between."""
    fields, units, segments = plan_parts(plan)
    yield json.dumps({**fields, "lookup": lookup})[:-1]
    for name, parts in (("units", units), ("segments", segments)):
        yield f', "{name}": ['
        yield from _joined(parts)
        yield "]"
    yield "}"


def _joined(parts: Iterable[Any]) -> Iterator[str]:
    for index, part in enumerate(parts):
        yield f"{', ' if index else ''}{json.dumps(part)}"
