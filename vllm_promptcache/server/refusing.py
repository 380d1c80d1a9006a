"""APIs that do not know PML: they say so, rather than answer as if there were none."""

from __future__ import annotations

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from vllm_promptcache.frontend.errors import RefusedError

# What composes prompts, and what has answers of its own to a body with `pml`.
COMPOSING = frozenset({"/v1/chat/completions", "/v1/completions"})
OWN = "/v1/prompt_cache"


def refuses(route: APIRoute) -> bool:
    """Whether a route takes bodies, and composes no prompts."""
    return "POST" in route.methods and route.path not in COMPOSING and not route.path.startswith(OWN)


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
    if "form" in request.headers.get("content-type", ""):
        return
    try:
        body = await request.json()  # FastAPI has read it already
    except (ValueError, RecursionError):
        return  # there is none
    if isinstance(body, dict) and body.get("pml") is not None:
        what = f"pml works with /v1/chat/completions and /v1/completions, not with {request.url.path}"
        raise RefusedError(what, field="pml")
