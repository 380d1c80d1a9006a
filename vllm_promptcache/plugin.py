"""vLLM's entry point (``vllm.general_plugins``): adds two flags; everything else waits for the first."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in every process, any number of times.

    Raises:
        UnsupportedError: the installed vLLM is not one the plugin works with.
    """
    from vllm_promptcache import arguments, compat

    compat.check_version()
    compat.wrap_engine_args(arguments.add, arguments.read, arguments.prepare, arguments.configure)
