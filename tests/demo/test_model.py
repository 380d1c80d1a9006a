"""The model of the demo, and the memory it takes."""

from pathlib import Path

import pytest

from demo.embedded_model import EmbeddedModelError
from demo.errors import DemoError
from demo.model import (
    KV_SPACE_VARIABLE,
    DemoModel,
    bytes_per_number,
    kv_numbers_per_token,
    open_model,
)

GIB = 1 << 30


def a_model(**changes: int) -> DemoModel:
    values = {"max_model_len": 8192, "weights_bytes": 4 * GIB, "kv_bytes_per_token": 46080} | changes
    return DemoModel("name", "path", "float32", **values)


def test_the_embedded_model_is_served_in_float32(
    embedded_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KV_SPACE_VARIABLE, raising=False)
    model = open_model(None, None)
    assert model.path == str(embedded_model)
    assert (model.dtype, model.max_model_len) == ("float32", 8192)
    # 30 layers, 3 key-value heads of 64, keys and values, 4 bytes.
    assert model.kv_bytes_per_token == 30 * 3 * 64 * 2 * 4
    assert model.weights_bytes == sum(file.stat().st_size for file in embedded_model.glob("*.safetensors"))
    assert model.kv_space_gib == 1


def test_another_model_is_served_as_it_is(tiny_model: Path) -> None:
    model = open_model(str(tiny_model), None)
    assert (model.name, model.dtype, model.max_model_len) == (tiny_model.name, "auto", 8192)
    assert open_model(str(tiny_model), "bfloat16").weights_bytes == model.weights_bytes // 2


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="cannot read the configuration of model"):
        open_model(str(tmp_path), None)


@pytest.mark.parametrize(
    ("config", "numbers"),
    [
        ({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, 2 * 2 * 64),
        (
            {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8},
            2 * 2 * 8,
        ),
        ({}, 0),
    ],
)
def test_keys_and_values_of_a_token(config: dict[str, int], numbers: int) -> None:
    assert kv_numbers_per_token(config) == numbers


def test_a_configuration_may_be_of_more_than_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 99}, "vision": {}}')
    assert open_model(str(tmp_path), None).max_model_len == 99


def test_a_failed_conversion_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise EmbeddedModelError("no network")

    monkeypatch.setattr("demo.model.embedded_model_path", fail)
    with pytest.raises(DemoError, match="no network"):
        open_model(None, None)


@pytest.mark.parametrize(("kv_bytes", "gib"), [(1, 1), (46080, 1), (2 * 46080, 2), (1 << 20, 16)])
def test_kv_space_is_enough_for_the_demo(kv_bytes: int, gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KV_SPACE_VARIABLE, raising=False)
    assert a_model(kv_bytes_per_token=kv_bytes).kv_space_gib == gib


def test_kv_space_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KV_SPACE_VARIABLE, "7")
    assert a_model().kv_space_gib == 7
    assert a_model().needed_bytes == (2 + 5 + 7) * GIB


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 4), ("float", 4), ("bfloat16", 2), ("half", 2)])
def test_bytes_per_number(dtype: str, expected: int) -> None:
    assert bytes_per_number(dtype) == expected
