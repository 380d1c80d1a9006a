"""Engine arguments: the plugin's flags, and its way into the ``VllmConfig``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_promptcache.compat.shims import wrap_once

# Target: EngineArgs.add_cli_args, from_cli_args, create_engine_config. Why: vLLM has no hook for a
# plugin's own flags, and from_cli_args copies only the dataclass's fields. Unnecessary once general
# plugins can add arguments (patches/: engine-args).


def wrap_engine_args(
    add_arguments: Callable[[Any], None],
    read_arguments: Callable[[Any], dict[str, Any] | None],
    prepare: Callable[[Any], None],
    configure: Callable[[Any, bool], None],
) -> None:
    """Let the plugin add flags, turn them into ``additional_config``, ``prepare`` with the engine's arguments
    before a ``VllmConfig`` is made of them, and ``configure`` that, told whether its engine serves HTTP.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    serving = (UsageContext.OPENAI_API_SERVER, UsageContext.OPENAI_BATCH_RUNNER)

    def make_add(original: Any) -> Any:
        def add_cli_args(parser: Any) -> Any:
            parser = original(parser)
            add_arguments(parser)
            return parser

        return add_cli_args

    def make_from(original: Any) -> Any:
        def from_cli_args(cls: Any, args: Any) -> Any:
            engine_args = original(cls, args)
            added = read_arguments(args)
            if added is not None:
                engine_args.additional_config = {**(engine_args.additional_config or {}), **added}
                # API servers in processes of their own read these arguments before they load plugins.
                args.additional_config = engine_args.additional_config
            return engine_args

        return from_cli_args

    def make_create(original: Any) -> Any:
        def create_engine_config(self: Any, usage_context: Any = None, *args: Any, **kwargs: Any) -> Any:
            prepare(self)
            vllm_config = original(self, usage_context, *args, **kwargs)
            configure(vllm_config, usage_context in serving)
            return vllm_config

        return create_engine_config

    wrap_once(EngineArgs, "add_cli_args", make_add, "parser")
    wrap_once(EngineArgs, "from_cli_args", make_from, "cls", "args")
    wrap_once(EngineArgs, "create_engine_config", make_create, "self", "usage_context", "headless")
