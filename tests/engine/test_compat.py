"""Shims that save time change nothing else: detokenizers primed with less, blocks hashed later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers.decoders
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache import compat
from vllm_promptcache.compat import server as compat_server

KEY = "prompt_cache"
COMPOSED = {KEY: {"units": [], "items": []}}

# What a prompt may end in: characters of several tokens, special tokens, spaces, line ends, no character.
PIECES = ["word", " word", " ", "   ", "\n", "\n\n", "é", "漢字", "😀", " 👩‍👩‍👧", "\ufffd", "."]


def request_of(prompt: list[int], extra_args: dict[str, Any] | None, **given: Any) -> Any:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id="r",
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=SamplingParams(extra_args=extra_args, **given),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


# -- detokenizers ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def shims() -> None:
    compat_server.prime_detokenizers_with_ends(KEY)
    compat.hash_blocks_later(KEY)


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: characters, and bytes for those it does not know; the first space is not shown."""
    characters = ["▁", *"word.\n"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    tokenizer = Tokenizer(
        models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def all_tokenizers(embedded_model: Path) -> dict[str, Any]:
    return {
        "embedded": AutoTokenizer.from_pretrained(embedded_model),
        "bytes": byte_tokenizer(),
        "fallback": fallback_tokenizer(),
    }


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def increments(
    tokenizer: Any, prompt: list[int], output: list[int], extra_args: dict[str, Any] | None, **given: Any
) -> list[str]:
    """What a client is sent, token by token."""
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer, IncrementalDetokenizer

    request = request_of(prompt, extra_args, **given)
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
    assert isinstance(detokenizer, FastIncrementalDetokenizer)
    texts = []
    for token in output:
        stop = detokenizer.update([token], stop_terminated=False)
        texts.append(detokenizer.get_next_output_text(finished=stop is not None, delta=True))
    assert detokenizer.output_token_ids == output
    return texts


@pytest.mark.parametrize("name", ["embedded", "bytes", "fallback"])
@given(
    pieces=st.lists(st.sampled_from([*PIECES, "SPECIAL"]), min_size=1, max_size=30),
    num_prompt_tokens=st.floats(0, 1),
    repeat=st.integers(1, 12),
    skip=st.booleans(),
    spaces=st.booleans(),
)
@example(pieces=["😀"], num_prompt_tokens=0.5, repeat=40, skip=True, spaces=True)
@example(pieces=["漢字"], num_prompt_tokens=0.5, repeat=40, skip=True, spaces=True)
@example(pieces=["word", "😀"], num_prompt_tokens=0.99, repeat=12, skip=True, spaces=True)
@example(pieces=["word", *["SPECIAL"] * 40, " word"], num_prompt_tokens=0.9, repeat=1, skip=True, spaces=True)
@example(pieces=[*["SPECIAL"] * 40, " word"], num_prompt_tokens=0.95, repeat=1, skip=False, spaces=False)
def test_a_prompts_end_gives_the_text_that_the_whole_prompt_gives(
    all_tokenizers: dict[str, Any],
    name: str,
    pieces: list[str],
    num_prompt_tokens: float,
    repeat: int,
    skip: bool,
    spaces: bool,
) -> None:
    tokenizer = all_tokenizers[name]
    tokens = tokens_of(tokenizer, "".join(pieces * repeat).replace("SPECIAL", tokenizer.eos_token))
    cut = round(num_prompt_tokens * len(tokens))
    parts = (tokenizer, tokens[:cut], tokens[cut:])
    given = {"skip_special_tokens": skip, "spaces_between_special_tokens": spaces}
    assert increments(*parts, COMPOSED, **given) == increments(*parts, None, **given)


@pytest.mark.parametrize("name", ["embedded", "bytes"])
@given(tokens=st.lists(st.integers(0, 256), min_size=1, max_size=120), num_new=st.integers(1, 20))
def test_tokens_that_are_no_text_make_no_difference(
    all_tokenizers: dict[str, Any], name: str, tokens: list[int], num_new: int
) -> None:
    parts = (all_tokenizers[name], tokens[:-num_new], tokens[-num_new:])
    assert increments(*parts, COMPOSED) == increments(*parts, None)


@pytest.mark.parametrize(
    ("min_tokens", "output", "sent"),
    [(0, "one stop", "one "), (10, "one stop two", "one stop "), (10, "one stop two stop", "one stop two ")],
)
def test_stop_strings_and_min_tokens_see_new_tokens_only(min_tokens: int, output: str, sent: str) -> None:
    tokenizer = byte_tokenizer()
    parts = (tokenizer, tokens_of(tokenizer, "stop " * 50), tokens_of(tokenizer, output))
    given = {"stop": ["stop"], "min_tokens": min_tokens, "include_stop_str_in_output": False}
    for extra_args in (COMPOSED, None):
        assert "".join(increments(*parts, extra_args, **given)) == sent


def primed(
    monkeypatch: pytest.MonkeyPatch, prompt: list[int], extra_args: dict[str, Any] | None
) -> list[int]:
    """The tokens that a decode stream is primed with."""
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    seen: list[list[int]] = []
    stream: Callable[..., Any] = tokenizers.decoders.DecodeStream

    def record(ids: list[int], **kwargs: Any) -> Any:
        seen.append(ids)
        return stream(ids=ids, **kwargs)

    request = request_of(prompt, extra_args)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizers.decoders, "DecodeStream", record)
        IncrementalDetokenizer.from_new_request(byte_tokenizer(), request)
    assert request.prompt_token_ids is prompt
    (ids,) = seen
    return ids


def test_only_composed_requests_are_primed_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tokens_of(byte_tokenizer(), "words and " * 100)
    assert primed(monkeypatch, prompt, COMPOSED) == prompt[-32:]
    for extra_args in (None, {}, {KEY: None}, {"other": COMPOSED}):
        assert primed(monkeypatch, prompt, extra_args) == prompt


def test_a_prompt_that_ends_within_a_character_primes_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    words, smile = (tokens_of(byte_tokenizer(), text) for text in ("words and ", "😀"))
    assert primed(monkeypatch, [*words * 10, *smile], COMPOSED) == [*(words * 3)[2:], *smile]
    for length in (1, 2, 3):
        prompt = [*words * 10, *smile[:length]]
        assert primed(monkeypatch, prompt, COMPOSED) == prompt


def test_special_tokens_that_are_not_shown_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer()
    prompt = [*tokens_of(tokenizer, "words and " * 20), *[tokenizer.eos_token_id] * 50]
    assert primed(monkeypatch, prompt, COMPOSED) == prompt[-64:]


# -- block hashes ----------------------------------------------------------------------------------


def test_blocks_of_composed_requests_are_hashed_later() -> None:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher = get_request_block_hasher(16, sha256)

    def made(extra_args: dict[str, Any] | None) -> Any:
        return Request.from_engine_core_request(request_of(list(range(100)), extra_args), hasher)

    plain, composed = made(None), made(COMPOSED)
    assert len(plain.block_hashes) == 6 and composed.block_hashes == []
    assert made({KEY: None}).block_hashes == made({"other": 1}).block_hashes == plain.block_hashes
    compat.reorder_prompt(composed, list(range(100)), hasher)
    assert composed.block_hashes == plain.block_hashes
    for request in (plain, composed):
        request.append_output_token_ids(list(range(20)))
    assert len(composed.block_hashes) == 7 and composed.block_hashes == plain.block_hashes
