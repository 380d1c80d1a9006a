"""The two command-line flags, and their way into ``VllmConfig.additional_config``."""

from __future__ import annotations

import json
from typing import Any

from vllm_promptcache.config import CONFIG_KEY, PromptCacheConfig, is_enabled


def add(parser: Any) -> None:
    """Add ``--enable-prompt-cache`` and ``--prompt-cache-config`` to vLLM's parser."""
    group = parser.add_argument_group(
        title="PromptCacheConfig", description="Modular attention reuse (vllm-promptcache)."
    )
    group.add_argument(
        "--enable-prompt-cache",
        action="store_true",
        default=False,
        help="Serve prompts composed of cached modules (PML).",
    )
    group.add_argument(
        "--prompt-cache-config",
        type=json.loads,
        default=None,
        help="Settings of the prompt cache as JSON, or dotted: --prompt-cache-config.pin_fraction 0.3",
    )


def read(args: Any) -> dict[str, Any] | None:
    """What the flags add to ``additional_config``, or None when the prompt cache is not enabled.

    Raises:
        ValueError: settings without the flag, or wrong settings.
    """
    settings = getattr(args, "prompt_cache_config", None)
    if not getattr(args, "enable_prompt_cache", False):
        if settings is not None:
            raise ValueError("--prompt-cache-config needs --enable-prompt-cache")
        return None
    if settings is not None and not isinstance(settings, dict):
        raise ValueError("--prompt-cache-config must be a JSON object")
    return {CONFIG_KEY: PromptCacheConfig.from_dict(settings or {}).to_dict()}


def prepare(engine_args: Any) -> None:
    """Before vLLM reads a model's configuration: nothing is touched unless the prompt cache is enabled."""
    if is_enabled(engine_args):
        from vllm_promptcache.compat import register_mpt

        register_mpt()


def configure(vllm_config: Any, serves: bool) -> None:
    """Adjust vLLM's configuration, ``serves`` of an engine behind HTTP and not in a script.

    Nothing is imported or touched unless the prompt cache is enabled.
    """
    if is_enabled(vllm_config):
        from vllm_promptcache.engine.configure import configure as configure_engine
        from vllm_promptcache.server.install import install

        configure_engine(vllm_config)
        install(vllm_config, serves=serves)
