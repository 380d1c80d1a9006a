"""Chat templates: the words of roles, and what continues a prompt."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from tests.byte_tokenizer import CHATML, CHATML_TOOLS, HEADERS, INST, NO_SYSTEM, byte_tokenizer
from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.chat_template import ChatTemplate, RoleWords

# As Qwen3's: what comes after the last user message is thought over first.
THINKING = (
    "{% set last = namespace(user=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > last.user %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEMPLATES = {
    "chatml": CHATML,
    "tools": CHATML_TOOLS,
    "headers": HEADERS,
    "inst": INST,
    "no-system": NO_SYSTEM,
    "thinking": THINKING,
}

CONVERSATIONS = (
    "user",
    "system user",
    "system user assistant",
    "user assistant user",
    "system user assistant user assistant user",
)


def template(name: str) -> ChatTemplate:
    return ChatTemplate(byte_tokenizer(bos="<s>", chat_template=TEMPLATES[name]))


def rendered(name: str, conversation: list[dict[str, str]], **options: Any) -> str:
    tokenizer = byte_tokenizer(bos="<s>", chat_template=TEMPLATES[name])
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_words_and_contents_together_are_the_template_s_text(name: str, conversation: str) -> None:
    roles = conversation.split()
    if name == "no-system" and "system" in roles:
        assert not template(name).has_role("system")
        with pytest.raises(TemplateError, match="System role not supported"):
            rendered(name, [{"role": role, "content": "x"} for role in roles])
        return
    goes_on = name == "thinking" and roles[-1] == "assistant"
    # The words are those of conversations that go on: a template may write its last answer otherwise.
    chat = [{"role": role, "content": f"content{i}"} for i, role in enumerate([*roles, *["user"] * goes_on])]
    text = ""
    for message, previous in zip(chat, [None, *roles], strict=False):
        words = template(name).words(message["role"], previous)
        text += words.before + message["content"] + words.after
    whole = rendered(name, chat)
    if name == "chatml" and roles[0] != "system":
        # Its default system message is no part of any role's words.
        assert whole.endswith(text)
        assert whole.removesuffix(text) == "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n"
    else:
        assert ("<s>" if template(name).writes_bos else "") + text == whole


def test_words_of_chatml() -> None:
    for previous in (None, "system", "user", "assistant"):
        for role in ("system", "user", "assistant"):
            expected = RoleWords(f"<|im_start|>{role}\n", "<|im_end|>\n")
            assert template("chatml").words(role, previous) == expected


def test_words_are_those_of_a_conversation_that_goes_on() -> None:
    for previous in (None, "system", "user"):
        expected = RoleWords("<|im_start|>assistant\n", "<|im_end|>\n")
        assert template("thinking").words("assistant", previous) == expected


def test_words_of_a_folded_system_message() -> None:
    inst = template("inst")
    assert inst.words("system") == RoleWords("[INST] <<SYS>>\n", "\n<</SYS>>\n\n")
    assert inst.words("user", "system") == RoleWords("", " [/INST]")
    assert inst.words("user") == RoleWords("[INST] ", " [/INST]")
    assert inst.words("user", "assistant") == RoleWords("<s>[INST] ", " [/INST]")
    # What it never renders gets the words it uses elsewhere.
    assert inst.words("user", "user") == inst.words("user", "assistant")


def test_a_role_that_the_template_refuses() -> None:
    with pytest.raises(ChatTemplateError, match="has no 'system' role"):
        template("no-system").words("system")


def test_no_template_at_all() -> None:
    bare = ChatTemplate(byte_tokenizer())
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        bare.words("user")
    assert ChatTemplate(byte_tokenizer(), CHATML).words("user").after == "<|im_end|>\n"


@pytest.mark.parametrize(
    ("name", "writes"), [("chatml", False), ("headers", True), ("inst", True), ("no-system", True)]
)
def test_bos_that_templates_write(name: str, writes: bool) -> None:
    assert template(name).writes_bos is writes


def test_a_mark_that_begins_every_message_is_no_bos() -> None:
    """SmolLM2 names `<|im_start|>` as its BOS token."""
    tokenizer = byte_tokenizer(bos="<|im_start|>", chat_template=CHATML)
    assert not ChatTemplate(tokenizer).writes_bos
    assert ChatTemplate(tokenizer).words("user").before == "<|im_start|>user\n"


def test_words_of_the_embedded_model(embedded_model: Any) -> None:
    chat = ChatTemplate(AutoTokenizer.from_pretrained(embedded_model))
    assert chat.words("user") == RoleWords("<|im_start|>user\n", "<|im_end|>\n")
    assert chat.words("system") == RoleWords("<|im_start|>system\n", "<|im_end|>\n")
