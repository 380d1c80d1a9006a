"""Whether an engine is behind HTTP is what vLLM says of it, not which of vLLM's modules are loaded."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from vllm_promptcache import plugin
from vllm_promptcache.server import install


@pytest.mark.parametrize(
    ("context", "serves"),
    [
        ((UsageContext.OPENAI_API_SERVER,), True),
        ((UsageContext.OPENAI_BATCH_RUNNER,), True),
        ((UsageContext.LLM_CLASS,), False),
        ((UsageContext.ENGINE_CONTEXT,), False),
        ((), False),
    ],
)
def test_a_script_stays_a_script(
    context: tuple[Any, ...], serves: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("vllm.entrypoints.launchers.app")  # as scripts do that use parts of the server
    told: list[bool] = []
    monkeypatch.setattr(install, "install", lambda config, *, serves: told.append(serves))
    plugin.register()
    EngineArgs(str(tiny_model), additional_config={"prompt_cache": {}}).create_engine_config(*context)
    assert told == [serves]
