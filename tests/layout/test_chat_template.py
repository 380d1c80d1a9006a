"""Chat templates: the words of roles, and what continues a prompt."""

# ruff: noqa: E501 (templates and their texts are read in lines)

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.byte_tokenizer import CHATML, CHATML_TOOLS, HEADERS, INST, NO_SYSTEM, byte_tokenizer
from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.chat_template import ChatTemplate, RoleWords

# As Mistral's of 2024: the system message goes into the last user message, wherever that is.
LAST_INST = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\\n\\n' if system is defined and loop.index0 >= turns | length - 1 else '')"
    " + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)

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


def messages(*pairs: str) -> list[dict[str, str]]:
    """`user Hi` is a user message with the content `Hi`."""
    return [dict(zip(("role", "content"), pair.split(" ", 1), strict=True)) for pair in pairs]


def rendered(name: str, conversation: list[dict[str, str]], **options: Any) -> str:
    tokenizer = byte_tokenizer(bos="<s>", chat_template=TEMPLATES[name])
    return str(tokenizer.apply_chat_template(conversation, tokenize=False, **options))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_words_and_contents_together_are_the_template_s_text(name: str, conversation: str) -> None:
    roles = conversation.split()
    if name == "no-system" and "system" in roles:
        pytest.skip("the template refuses it")
    if name == "thinking" and roles[-1] == "assistant":
        pytest.skip("the words are those of conversations that go on")
    chat = [{"role": role, "content": f"content{i}"} for i, role in enumerate(roles)]
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
    for call in (lambda: bare.words("user"), lambda: bare.continuation([])):
        with pytest.raises(ChatTemplateError, match="has no chat template"):
            call()
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
    assert chat.continuation(messages("user Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


# Continuing


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize(
    ("first", "second"), [*pairwise(CONVERSATIONS), ("user assistant", "user"), ("user", "")]
)
def test_a_continuation_is_the_rest_of_the_conversation(
    name: str, generate: bool, first: str, second: str
) -> None:
    """Where the PML part holds the roles before, both together are the template's own text."""
    before = [{"role": role, "content": f"before{i}"} for i, role in enumerate(first.split())]
    after = [{"role": role, "content": f"after{i}"} for i, role in enumerate(second.split())]
    try:
        whole = rendered(name, [*before, *after], add_generation_prompt=generate)
    except Exception:
        if name == "no-system" and "system" in first:
            pytest.skip("no PML part can hold these roles")
        with pytest.raises(ChatTemplateError, match="refuses the messages"):
            template(name).continuation(after, generate, previous_roles=first.split())
        return
    rest = template(name).continuation(after, generate, previous_roles=first.split())
    last = template(name).words(before[-1]["role"]).after
    assert whole.endswith(before[-1]["content"] + last + rest)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("headers", "<|head|>user<|tail|>\n\nHi<|eot|><|head|>assistant<|tail|>\n\n"),
        ("inst", "[INST] Hi [/INST]"),
        ("no-system", "<turn>user\nHi<end>\n<turn>model\n"),
    ],
)
def test_after_modules_without_roles_there_is_no_default_system_message_and_no_bos(
    name: str, expected: str
) -> None:
    assert template(name).continuation(messages("user Hi")) == expected


def test_without_messages_it_is_the_generation_prompt() -> None:
    for previous in ((), ("user",), ("system", "user")):
        assert template("chatml").continuation([], previous_roles=previous) == "<|im_start|>assistant\n"
        assert template("chatml").continuation([], False, previous_roles=previous) == ""


def test_a_system_message_of_the_request_is_rendered_where_it_can_be() -> None:
    chat = messages("system S", "user U")
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert template("chatml").continuation(chat) == expected
    assert template("chatml").continuation(chat, previous_roles=["system"]) == expected
    assert template("inst").continuation(chat) == "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]"
    for name in ("inst", "no-system"):
        with pytest.raises(ChatTemplateError, match="refuses the messages: "):
            template(name).continuation(chat, previous_roles=["system"])


def test_a_template_that_moves_the_system_message_past_other_messages_is_refused() -> None:
    chat = ChatTemplate(byte_tokenizer(bos="<s>", chat_template=LAST_INST))
    assert chat.continuation(messages("user U"), previous_roles=["system"]) == "U[/INST]"
    with pytest.raises(ChatTemplateError, match="writes later messages before"):
        chat.continuation(messages("user U", "assistant A", "user V"), previous_roles=["system"])


class Dated:
    """A tokenizer whose template writes the date before everything else; counts conversations."""

    def __init__(self) -> None:
        self.date = "1 May"
        self.num_rendered = 0
        self._tokenizer = byte_tokenizer(chat_template="{{ date }}\n" + CHATML)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        self.num_rendered += 1
        return str(self._tokenizer.apply_chat_template(conversation, date=self.date, **options))


def test_a_conversation_with_a_known_beginning_is_rendered_once() -> None:
    tokenizer = Dated()
    chat = ChatTemplate(tokenizer)
    for date, num_rendered in (("1 May", 1), ("2 May", 2), ("2 May", 1)):
        chat.continuation(messages("user T"), previous_roles=["system"])
        tokenizer.date, tokenizer.num_rendered = date, 0
        for user in ("U", "V"):
            said = chat.continuation(messages(f"user {user}"), previous_roles=["system"])
            assert said == f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.num_rendered == num_rendered + 1


TOOLS = [{"name": "f"}]


def test_tools_in_a_system_message() -> None:
    for previous in ((), ("system",), ("user",), ("user", "assistant")):
        assert template("tools").continuation(messages("user U"), tools=TOOLS, previous_roles=previous) == (
            '<|im_start|>system\n\n\n# Tools\n[{"name": "f"}]<|im_end|>\n'
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
        )


def test_tools_in_the_first_user_message() -> None:
    for previous in ((), ("system",), ("user",)):
        assert template("headers").continuation(messages("user U"), tools=TOOLS, previous_roles=previous) == (
            '<|head|>user<|tail|>\n\nTools: [{"name": "f"}]\n\nU<|eot|><|head|>assistant<|tail|>\n\n'
        )


def test_tools_with_nowhere_to_go() -> None:
    with pytest.raises(ChatTemplateError, match="writes tools into a message that the prompt's PML holds"):
        template("headers").continuation([], tools=TOOLS, previous_roles=["user"])


def test_tools_that_the_template_ignores() -> None:
    expected = "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert template("chatml").continuation(messages("user U"), tools=TOOLS) == expected


def test_options_reach_the_template() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML + "{{ '<think>' if thinking else '' }}")
    assert ChatTemplate(tokenizer).continuation([], thinking=True).endswith("assistant\n<think>")
    assert not ChatTemplate(tokenizer).continuation([]).endswith("<think>")
