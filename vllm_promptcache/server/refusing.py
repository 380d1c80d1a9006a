"""APIs that do not know PML: they say so, rather than answer as if there were none."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from vllm_promptcache.frontend.errors import RefusedError

PATHS = frozenset(
    {
        "/tokenize",
        "/v1/chat/completions/batch",  # one `pml` would belong to several conversations
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/messages/render",
        "/v1/responses",
        "/v1/responses/render",
    }
)


def refusing(route: APIRoute) -> APIRoute:
    """A route like this one that refuses PML."""
    return APIRoute(
        route.path,
        route.endpoint,
        methods=route.methods,
        response_model=route.response_model,
        # The body is looked at once it is known to be JSON.
        dependencies=[*route.dependencies, Depends(_refuse_pml)],
        responses=route.responses,
    )


async def _refuse_pml(request: Request) -> None:
    """Raises RefusedError where a body has PML: some of the requests' models drop fields they do not know."""
    try:
        body = await request.json()  # FastAPI has read it already
    except ValueError:
        return  # there is none
    if isinstance(body, dict) and body.get("pml") is not None:
        what = f"pml works with /v1/chat/completions and /v1/completions, not with {request.url.path}"
        raise RefusedError(what, field="pml")
