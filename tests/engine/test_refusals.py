"""What the prompt cache refuses when an engine is configured, with the reason. No engine is started."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.config.kv_events import KVEventsConfig
from vllm.model_executor.models import registry

from tests.engine.support import EngineArgs
from vllm_promptcache.cli.main import main
from vllm_promptcache.compat import UnsupportedError
from vllm_promptcache.engine import models
from vllm_promptcache.engine.configure import refuse_unsupported

SMALL: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
}

MODELS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama4": ("llama4_text", "Llama4ForCausalLM", {"attention_chunk_size": 128}, "chunked-local"),
    "bert": ("bert", "BertModel", {}, "pooling"),
}


RECURRENT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mamba": ("mamba", "MambaForCausalLM", {"state_size": 16}),
    "mamba2": ("mamba2", "Mamba2ForCausalLM", {"num_heads": 4, "head_dim": 32, "expand": 2}),
    "jamba": ("jamba", "JambaForCausalLM", {"num_hidden_layers": 8}),
    "qwen3-next": ("qwen3_next", "Qwen3NextForCausalLM", {"num_hidden_layers": 4}),
}


def folder(tmp_path: Path, model_type: str, architecture: str, changes: dict[str, Any]) -> str:
    """A model folder with nothing but a configuration."""
    values = SMALL | changes
    if values["head_dim"] is None:  # the architecture derives it
        del values["head_dim"]
    config = {"model_type": model_type, "architectures": [architecture], "torch_dtype": "float32", **values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def configure(model: str, **settings: Any) -> Any:
    settings.setdefault("additional_config", {"prompt_cache": {}})
    arguments = EngineArgs(model=model, skip_tokenizer_init=True, max_model_len=1024, **settings)
    return arguments.create_engine_config()


@pytest.fixture(autouse=True)
def inspect_models_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM starts a process for each architecture that it has not seen on this machine: many seconds."""

    def inspect_model_cls(self: Any) -> Any:
        return registry._ModelInfo.from_model_cls(self.load_model_cls())

    monkeypatch.setattr(registry._LazyRegisteredModel, "inspect_model_cls", inspect_model_cls)


@pytest.fixture
def llama(tmp_path: Path) -> str:
    return folder(tmp_path, "llama", "LlamaForCausalLM", {})


@pytest.mark.parametrize(("model_type", "architecture", "changes", "reason"), MODELS.values(), ids=MODELS)
def test_models(
    tmp_path: Path, model_type: str, architecture: str, changes: dict[str, Any], reason: str
) -> None:
    model = folder(tmp_path, model_type, architecture, changes)
    configure(model, additional_config={})  # without the prompt cache vLLM serves it
    with pytest.raises(UnsupportedError, match=reason) as caught:
        configure(model)
    assert model in str(caught.value)


def test_the_command_line_says_what_a_start_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama4").mkdir()
    refused = folder(tmp_path / "llama4", *MODELS["llama4"][:3])
    served = folder(tmp_path, "mistral", "MistralForCausalLM", {"sliding_window": 128})
    with pytest.raises(UnsupportedError) as caught:
        configure(refused)
    assert main(["models", served, refused, str(tmp_path / "absent")]) == 1
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    assert first.startswith(f"{served}: served, up to 2048 positions; what a window of 128 states reaches")
    assert second == f"{refused}: {caught.value}"
    assert third.startswith(f"{tmp_path}/absent: vLLM cannot read its configuration")
    assert main(["models", served, "--max-model-len", "128"]) == 0
    assert capsys.readouterr().out.endswith("served, up to 128 positions\n")


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": None}, 0),
        ({"sliding_window": 128}, 129),
        ({"sliding_window": 1023}, 1024),
        ({"sliding_window": 1024}, 0),  # the model's length: it cannot bind
        ({"sliding_window": 262144}, 0),
    ],
)
def test_windows_that_can_bind(tmp_path: Path, changes: dict[str, Any], window: int) -> None:
    model = folder(tmp_path, "mistral", "MistralForCausalLM", changes)
    vllm_config = configure(model)
    assert "PromptCache" in vllm_config.parallel_config.worker_cls
    assert models.window_of(vllm_config.model_config) == window


@pytest.mark.parametrize(("model_type", "architecture", "changes"), RECURRENT.values(), ids=RECURRENT)
def test_prompts_of_recurrent_models_are_plain(
    tmp_path: Path, model_type: str, architecture: str, changes: dict[str, Any]
) -> None:
    model = folder(tmp_path, model_type, architecture, changes)
    plain = configure(model, additional_config={})
    vllm_config = configure(model)
    assert vllm_config.scheduler_config.scheduler_cls.endswith("PlainScheduler")
    assert vllm_config.parallel_config.worker_cls == plain.parallel_config.worker_cls
    verdict = models.verdict_of(model)
    assert verdict.is_served and "recurrent layers" in verdict.sentence


@pytest.mark.parametrize(
    ("model_type", "architecture", "changes"),
    [
        ("bloom", "BloomForCausalLM", {"n_layer": 2, "n_head": 4}),
        ("falcon", "FalconForCausalLM", {"alibi": True, "head_dim": None}),
        ("mpt", "MPTForCausalLM", {"head_dim": None}),
    ],
)
def test_alibi_is_a_window_of_all_states(
    tmp_path: Path, model_type: str, architecture: str, changes: dict[str, Any]
) -> None:
    model = folder(tmp_path, model_type, architecture, changes)
    assert models.window_of(configure(model).model_config) == 1024
    assert "ALiBi: modules are copied" in models.verdict_of(model).sentence


def test_layers_of_one_kind_have_no_windows(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}
    model = folder(tmp_path, "qwen2", "Qwen2ForCausalLM", changes)
    assert models.window_of(configure(model).model_config) == 0


def test_a_chunk_of_the_models_length_is_none(tmp_path: Path) -> None:
    model = folder(tmp_path, "llama4_text", "Llama4ForCausalLM", {"attention_chunk_size": 1024})
    assert "PromptCache" in configure(model).parallel_config.worker_cls


NGRAMS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 4096}, "chunked prefill"),
        ({"decode_context_parallel_size": 2, "tensor_parallel_size": 4}, "decode context parallelism"),
        ({"runner": "pooling"}, "pooling"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "cannot be combined with"),
        ({"worker_cls": "some.other.Worker"}, "no worker to put in place of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings(llama: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        configure(llama, **settings)


def test_adaptive_verification(llama: str) -> None:
    """vLLM itself refuses it but on V2, which needs a GPU or an interpreter to be configured."""
    config = configure(llama, speculative_config=NGRAMS)
    refuse_unsupported(config)
    config.speculative_config.enable_adaptive_verification = True
    with pytest.raises(UnsupportedError, match="adaptive verification cuts"):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"speculative_config": NGRAMS},
        {"pipeline_parallel_size": 2},
        {"kv_transfer_config": KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")},
        {"kv_events_config": KVEventsConfig(enable_kv_cache_events=True)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_work_beside_modules(llama: str, settings: dict[str, Any]) -> None:
    assert "PromptCache" in configure(llama, **settings).parallel_config.worker_cls


def test_all_reasons_are_named_at_once(tmp_path: Path) -> None:
    model = folder(tmp_path, "llama4_text", "Llama4ForCausalLM", {"attention_chunk_size": 128})
    with pytest.raises(UnsupportedError, match=r"chunked-local.*; .*chunked prefill"):
        configure(model, enable_chunked_prefill=False, max_num_batched_tokens=4096)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pin_fraction": 2}, "pin_fraction"),
        ({"pin_faction": 0.5}, "unknown field pin_faction"),
        ({"max_schemas": 0}, "max_schemas"),
    ],
)
def test_wrong_settings_of_the_prompt_cache(llama: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(llama, additional_config={"prompt_cache": config})


def test_mpt_is_served_with_the_prompt_cache_only(tmp_path: Path) -> None:
    """Its class is the plugin's, as vLLM has none any more."""
    model = folder(tmp_path, "mpt", "MPTForCausalLM", {"head_dim": None})
    arguments = [
        "-c",
        f"from tests.engine.support import EngineArgs; EngineArgs({model!r}).create_engine_config()",
    ]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode and "not supported anymore" in done.stderr


def test_without_the_prompt_cache_nothing_is_changed(llama: str) -> None:
    vllm_config = configure(llama, additional_config={})
    assert vllm_config.scheduler_config.scheduler_cls is None
    assert vllm_config.parallel_config.worker_cls == "vllm.v1.worker.cpu_worker.CPUWorker"


def test_configuring_twice_is_configuring_once(llama: str) -> None:
    from vllm_promptcache.engine.configure import configure as configure_engine

    vllm_config = configure(llama)
    before = (vllm_config.scheduler_config.scheduler_cls, vllm_config.parallel_config.worker_cls)
    configure_engine(vllm_config)
    assert before == (vllm_config.scheduler_config.scheduler_cls, vllm_config.parallel_config.worker_cls)
