"""Every route of vLLM's that composes no prompts says so to a body with PML."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from vllm.entrypoints.launchers import app as launcher
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_promptcache.server import refusing
from vllm_promptcache.server.app import extend


@pytest.fixture(scope="module")
def app() -> Any:
    """All routes that a server of a generating model can have; no engine."""
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", "x", "--enable-scale-out"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "attach_endpoint_plugins", lambda app, tasks: extend(app))
        return launcher.build_app(arguments, ("generate",), None)


def test_all_routes_refuse_pml(app: Any) -> None:
    paths = [
        route.path
        for route in app.routes
        if isinstance(route, APIRoute) and "POST" in route.methods and not route.path.startswith(refusing.OWN)
    ]
    others = set(paths) - refusing.COMPOSING
    assert len(others) > 15 and {"/inference/v1/generate", "/detokenize", "/invocations"} <= others

    async def ask() -> dict[str, httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            body = {"model": "x", "prompt": "x", "pml": "<prompt schema='s'/>"}
            return {path: await client.post(path, json=body) for path in others}

    for path, answer in asyncio.run(ask()).items():
        assert answer.status_code == 400, path
        assert answer.json()["error"]["message"].endswith(f"/v1/completions, not with {path}")
