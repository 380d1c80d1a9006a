"""Rendering a model's chat template with marks as contents, to see what it writes around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from vllm_promptcache.errors import ChatTemplateError

Message = Mapping[str, Any]

_MARK = "PmlMark"
USUAL_NEXT = {"system": "user", "user": "assistant", "assistant": "user"}


class TemplatedTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def chat_template(self) -> Any: ...
    @property
    def bos_token(self) -> Any: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **kwargs: Any) -> Any: ...


def common_start(first: str, second: str) -> str:
    """What two texts begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))]


def mark(index: int) -> str:
    """A content that occurs nowhere else. Letters and digits only: templates split at anything else."""
    return f"{_MARK}{index}Qx7Zk"


def marked_messages(roles: Sequence[str]) -> list[Message]:
    """A conversation of these roles with marks as contents."""
    return [{"role": role, "content": mark(i)} for i, role in enumerate(roles)]


class TemplateRenderer:
    """A tokenizer's chat template; `chat_template` (Jinja text) replaces the tokenizer's own, and `now` the
    time that it is told."""

    def __init__(
        self, tokenizer: TemplatedTokenizer, chat_template: str | None = None, now: datetime | None = None
    ) -> None:
        self._now = now
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    @property
    def source(self) -> str:
        """The template's own text; empty where there is none."""
        return str(self._chat_template or getattr(self._tokenizer, "chat_template", None) or "")

    def require_template(self) -> None:
        """Raises ChatTemplateError where there is no template."""
        if not (self._chat_template or getattr(self._tokenizer, "chat_template", None)):
            raise ChatTemplateError("the model has no chat template, so there are no roles")

    def render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """The template's text. Raises ChatTemplateError, with the template's words, where it refuses."""
        arguments = dict(options)
        if self._chat_template:
            arguments.setdefault("chat_template", self._chat_template)
        if self._now is not None:
            arguments.setdefault("strftime_now", self._now.strftime)
        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments))
        except Exception as error:
            # A template refuses in its own ways: TemplateError, TypeError, UndefinedError, …
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error

    def around_contents(
        self, roles: Sequence[str], options: Mapping[str, Any] | None = None
    ) -> list[str] | None:
        """The texts around the contents of a conversation: one more than `roles`.

        None where the template refuses the conversation, or loses or moves a content.
        """
        try:
            rest = self.render(marked_messages(roles), options or {})
        except ChatTemplateError:
            return None
        texts = []
        for i in range(len(roles)):
            text, found, rest = rest.partition(mark(i))
            if not found:
                return None
            texts.append(text)
        texts.append(rest)
        return None if any(_MARK in text for text in texts) else texts

    def between(self, first: str, second: str) -> str | None:
        """What stands between the contents of two messages that follow each other, or None."""
        for start in ([], ["system"], ["user"], ["system", "user"], ["user", "assistant"]):
            for end in (_going_on(second), [], ["assistant"]):
                texts = self.around_contents([*start, first, second, *end])
                if texts is not None:
                    return texts[len(start) + 1]
        return None

    def after_last(self, role: str) -> str | None:
        """What stands after the content of a conversation's last message, or None."""
        for start in ([], ["user"], ["system"], ["system", "user"], ["user", "assistant"]):
            texts = self.around_contents([*start, role])
            if texts is not None:
                return texts[-1]
        return None

    def before_first(self, role: str) -> str | None:
        """What stands before the content of a conversation's first message, BOS left out, or None."""
        for end in (_going_on(role), [], ["user"], ["user", "assistant"], ["assistant"]):
            texts = self.around_contents([role, *end])
            if texts is not None:
                return texts[0].removeprefix(self.bos)
        return None

    @cached_property
    def bos(self) -> str:
        """The BOS token's text, or nothing where it is no beginning.

        Some models (SmolLM2) name as BOS the mark that begins every message.
        """
        bos = str(getattr(self._tokenizer, "bos_token", None) or "")
        between = self.between("user", "assistant")
        return "" if between is not None and bos and bos in between else bos

    @cached_property
    def writes_bos(self) -> bool:
        """Whether a conversation begins with the BOS token's text."""
        texts = self.around_contents(["user"]) or self.around_contents(["system", "user"])
        return bool(self.bos) and texts is not None and texts[0].startswith(self.bos)


def _going_on(role: str) -> list[str]:
    """What usually follows a message. Some templates write a conversation's last messages differently:
    Qwen3's has an answer after the last question begin with thoughts."""
    return [USUAL_NEXT.get(role, "user")]
