"""The words that a model's chat template puts before and after messages (PML page, "Schema elements").

A template is a program, not a table, so its words are found by rendering conversations whose contents
are marks that occur nowhere else, and cutting between the marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

Message = Mapping[str, Any]


class ChatTemplateError(ValueError):
    """The model has no chat template, or its template refuses what a document asks of it."""


class TemplatedTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def chat_template(self) -> Any: ...
    @property
    def bos_token(self) -> Any: ...
    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True, **kwargs: Any) -> Any: ...


@dataclass(frozen=True)
class RoleWords:
    """The text before and after the content of a message."""

    before: str
    after: str


def _mark(index: int) -> str:
    # Letters and digits only: templates strip, escape or split at anything else.
    return f"PmlMark{index}Qx7Zk"


class ChatTemplate:
    """A tokenizer's chat template; `chat_template` (Jinja text) replaces the tokenizer's own.

    BOS is never part of a first message's words: it is the schema's first token (PML page, "Text").
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer: TemplatedTokenizer = tokenizer
        self._chat_template = chat_template
        self._words: dict[tuple[str, str | None], RoleWords] = {}

    @cached_property
    def writes_bos(self) -> bool:
        """Whether a conversation begins with the BOS token's text."""
        bos = self._bos
        if not bos:
            return False
        rendered = self._render_marks(["user"]) or self._render_marks(["system", "user"])
        return rendered is not None and rendered[0].startswith(bos)

    def words(self, role: str, previous: str | None = None) -> RoleWords:
        """The words around a `role` message after a `previous` one (None: it is the first).

        Before and after words of neighbouring messages together are exactly what the template writes
        between their contents, wherever it renders such a conversation. Where it never lets `role`
        follow `previous`, the words are those it uses elsewhere. A template that folds the system
        message into the first user message ([INST]) has all that joins the two in the system message's
        after words, and nothing before the user message that follows.

        Raises ChatTemplateError where there is no template or it knows no such role.
        """
        key = (role, previous)
        if key not in self._words:
            self._require_template()
            self._words[key] = RoleWords(self._before(role, previous), self._after(role))
        return self._words[key]

    def continuation(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        previous_roles: Sequence[str] = (),
        **template_kwargs: Any,
    ) -> str:
        """What follows a prompt's PML: `messages` as further turns, then the generation prompt.

        `previous_roles` are the roles the PML part holds, in order. There is no second default system
        message and no BOS in front. Tools that the template writes into a system message, which lies
        before the cut, come in a system message of their own.

        Raises ChatTemplateError where the template refuses the conversation, with its own words.
        """
        self._require_template()
        options = dict(template_kwargs, add_generation_prompt=add_generation_prompt)
        plain = self._continue(previous_roles, messages, options)
        if not tools:
            return plain[1]
        options["tools"] = list(tools)
        head, tail = self._continue(previous_roles, messages, options)
        if head == plain[0]:
            return tail
        return self._with_tools(messages, options)

    # Rendering

    @cached_property
    def _bos(self) -> str:
        """The BOS token's text, or nothing where it is no beginning.

        Some models (SmolLM2) name as BOS the mark that begins every message.
        """
        bos = str(self._tokenizer.bos_token or "")
        between = self._between("user", "assistant")
        return "" if between is not None and bos and bos in between else bos

    def _require_template(self) -> None:
        if not (self._chat_template or getattr(self._tokenizer, "chat_template", None)):
            raise ChatTemplateError("the model has no chat template, so there are no roles")

    def _render(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """Raises whatever the template raises."""
        arguments = dict(options)
        if self._chat_template and "chat_template" not in arguments:
            arguments["chat_template"] = self._chat_template
        rendered = self._tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
        return str(rendered)

    def _render_marks(self, roles: Sequence[str]) -> list[str] | None:
        """The texts around the contents of a conversation of marks: one more than `roles`.

        None where the template refuses the conversation, or loses or moves a content.
        """
        messages = [{"role": role, "content": _mark(i)} for i, role in enumerate(roles)]
        try:
            rest = self._render(messages, {})
        except Exception:
            # A template refuses in its own ways: TemplateError, TypeError, UndefinedError, …
            return None
        texts = []
        for i in range(len(roles)):
            text, found, rest = rest.partition(_mark(i))
            if not found:
                return None
            texts.append(text)
        return None if "PmlMark" in rest or any("PmlMark" in text for text in texts) else [*texts, rest]

    def _between(self, first: str, second: str) -> str | None:
        """What stands between the contents of two messages that follow each other, or None."""
        for start in ([], ["system"], ["user"], ["system", "user"], ["user", "assistant"]):
            texts = self._render_marks([*start, first, second])
            if texts is None and second == "user":
                texts = self._render_marks([*start, first, second, "assistant"])
                texts = texts[:-1] if texts else None
            if texts is not None:
                return texts[-2]
        return None

    def _last(self, role: str) -> str | None:
        """What stands after the content of a last message, or None."""
        for start in ([], ["user"], ["system"], ["system", "user"], ["user", "assistant"]):
            texts = self._render_marks([*start, role])
            if texts is not None:
                return texts[-1]
        return None

    # Words

    def _after(self, role: str) -> str:
        following = {"system": "user", "user": "assistant", "assistant": "user"}.get(role, "user")
        last, between = self._last(role), self._between(role, following)
        if last is None and between is None:
            raise ChatTemplateError(f"the model's chat template has no {role!r} role")
        if last is None or between is None:
            return last or between or ""
        if between.startswith(last):
            return last
        # What ends a last message is not what joins it to the next one. A system message is never the
        # last; of any other, what both have in common belongs to the message.
        return between if role == "system" else _common_start(last, between)

    def _before(self, role: str, previous: str | None) -> str:
        if previous is None:
            return self._before_first(role)
        between = self._between(previous, role)
        if between is not None:
            after = self._after(previous)
            if between.startswith(after):
                return between[len(after) :]
        if previous in ("user", "assistant") and role != _usual_next(previous):
            return self._before(
                role, "assistant" if role == "user" else "user" if role == "assistant" else None
            )
        return self._before_first(role)

    def _before_first(self, role: str) -> str:
        for conversation in ([role], [role, "user"], [role, "user", "assistant"], [role, "assistant"]):
            texts = self._render_marks(conversation)
            if texts is not None:
                break
        else:
            texts = None
        usual = self._before_usual(role)
        if texts is None:
            if usual is None:
                raise ChatTemplateError(f"the model's chat template has no {role!r} role")
            return usual
        first = texts[0].removeprefix(self._bos)
        # A template may begin with a system message of its own: that is not this message's.
        return usual if usual is not None and first.endswith(usual) else first

    def _before_usual(self, role: str) -> str | None:
        """The words before a message in the middle of a conversation, without BOS, or None."""
        previous = {"user": "assistant", "assistant": "user"}.get(role)
        if previous is None:
            return None
        between = self._between(previous, role)
        if between is None:
            return None
        after = self._after(previous)
        return between[len(after) :].removeprefix(self._bos) if between.startswith(after) else None

    # Continuing

    def _continue(
        self, previous_roles: Sequence[str], messages: Sequence[Message], options: Mapping[str, Any]
    ) -> tuple[str, str]:
        """A conversation's text up to the end of the PML part, and after it."""
        if not previous_roles and messages and messages[0].get("role") == "system":
            return "", self._render_or_refuse(messages, options).removeprefix(self._bos)
        refused: ChatTemplateError | None = None
        for roles in _beginnings(previous_roles):
            marks = [{"role": role, "content": _mark(i)} for i, role in enumerate(roles)]
            try:
                rendered = self._render_or_refuse([*marks, *messages], options)
            except ChatTemplateError as error:
                refused = refused or error
                continue
            head, found, tail = rendered.partition(_mark(len(roles) - 1))
            if found:
                after = self._after(roles[-1])
                tail = tail.removeprefix(after)
                return head, tail if previous_roles else tail.removeprefix(self._bos)
        raise refused or ChatTemplateError("the model's chat template cannot continue the prompt's roles")

    def _render_or_refuse(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        try:
            return self._render(messages, options)
        except Exception as error:
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error

    def _with_tools(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """Messages after a system message that holds nothing but the tools."""
        mark = _mark(0)
        rendered = self._render_or_refuse([{"role": "system", "content": mark}, *messages], options)
        _, found, tail = rendered.partition(mark)
        after = self._after("system")
        plain = self._continue(("system",), messages, {**options, "tools": None})[1]
        if found and tail.startswith(after) and tail != after + plain:
            # The tools stand in the first of the messages, not in the system message.
            return tail[len(after) :]
        return rendered.removeprefix(self._bos).replace(mark, "", 1)


def _common_start(first: str, second: str) -> str:
    pairs = enumerate(zip(first, second, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))]


def _usual_next(role: str) -> str:
    return {"system": "user", "user": "assistant", "assistant": "user"}.get(role, "user")


def _beginnings(previous_roles: Sequence[str]) -> list[list[str]]:
    """Conversations that can stand for the PML part, the likeliest first."""
    if not previous_roles:
        return [["user", "assistant"], ["system"]]
    last = previous_roles[-1]
    shortest = {
        "system": ["system"],
        "user": ["user"],
        "assistant": ["user", "assistant"],
    }.get(last, [last])
    return [list(previous_roles), shortest]
