"""Tokenizers: BOS, unknown-tokens, text runs."""

from __future__ import annotations

from tests.byte_tokenizer import CHATML, HEADERS, byte_tokenizer
from vllm_promptcache.layout.encoder import TextEncoder


def test_text_is_encoded_without_special_tokens() -> None:
    encoder = TextEncoder(byte_tokenizer(bos="<s>", adds_bos=True))
    assert len(encoder.encode("abc")) == 3
    assert encoder.encode("") == []


def test_bos_is_told_from_a_token_of_that_name() -> None:
    adding = byte_tokenizer(bos="<s>", adds_bos=True)
    assert TextEncoder(adding).bos == adding.bos_token_id
    assert TextEncoder(byte_tokenizer(bos="<s>")).bos is None
    assert TextEncoder(byte_tokenizer()).bos is None


def test_bos_that_the_template_writes() -> None:
    tokenizer = byte_tokenizer(bos="<s>", chat_template=HEADERS)
    assert TextEncoder(tokenizer).template_bos == tokenizer.bos_token_id
    assert TextEncoder(byte_tokenizer(bos="<s>", chat_template=CHATML)).template_bos is None


def test_an_unknown_token_has_to_be_one() -> None:
    own = byte_tokenizer()
    assert TextEncoder(own).unknown == own.unk_token_id
    assert TextEncoder(byte_tokenizer(unk=None)).unknown is None
    # As GPT-2 and SmolLM2.
    assert TextEncoder(byte_tokenizer(unk="<|endoftext|>")).unknown is None
    assert TextEncoder(byte_tokenizer(unk="</s>")).unknown is None
