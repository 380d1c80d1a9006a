"""The words that a model's chat template puts before and after messages (PML page, "Schema elements").

A template is a program, not a table, so its words are found by rendering conversations whose contents
are marks, and cutting between the marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.template_renderer import (
    USUAL_NEXT,
    Message,
    TemplatedTokenizer,
    TemplateRenderer,
    common_start,
    mark,
    marked_messages,
)

_USUAL_PREVIOUS = {"user": "assistant", "assistant": "user"}
# Beginnings of conversations that are remembered: clients choose the roles, and templates may write the date.
_MAX_HEADS = 256


@dataclass(frozen=True)
class RoleWords:
    """The text before and after the content of a message."""

    before: str
    after: str


class ChatTemplate:
    """A tokenizer's chat template; `chat_template` (Jinja text) replaces the tokenizer's own.

    BOS is never part of a first message's words: it is the schema's first token (PML page, "Text").
    """

    def __init__(self, tokenizer: TemplatedTokenizer, chat_template: str | None = None) -> None:
        self._renderer = TemplateRenderer(tokenizer, chat_template)
        self._words: dict[tuple[str, str | None], RoleWords] = {}
        self._afters: dict[str, str] = {}
        self._heads: set[tuple[str, ...]] = set()

    @cached_property
    def writes_bos(self) -> bool:
        """Whether the template itself writes BOS before the first message."""
        return self._renderer.writes_bos

    @property
    def bos(self) -> str:
        """The BOS token's text, or nothing where it is no beginning."""
        return self._renderer.bos

    def has_role(self, role: str) -> bool:
        """Whether the template has words for a role. Raises ChatTemplateError where there is no template."""
        self._renderer.require_template()
        try:
            self.words(role)
        except ChatTemplateError:
            return False
        return True

    def cut(
        self, messages: Sequence[Message], num_marks: int, options: Mapping[str, Any]
    ) -> tuple[list[int], list[str]]:
        """The marks in a conversation's contents in the order in which it is written, and the texts around
        them, one more than marks. Some templates write the system message behind others.

        Raises ChatTemplateError where the template refuses the conversation, with its own words, or does
        not write each content once.
        """
        self._renderer.require_template()
        rest = self._renderer.render(messages, options)
        if any(rest.count(mark(index)) != 1 for index in range(num_marks)):
            what = "the model's chat template does not write each message of the prompt's PML once"
            raise ChatTemplateError(what)
        order = sorted(range(num_marks), key=lambda index: rest.index(mark(index)))
        texts = []
        for index in order:
            text, _, rest = rest.partition(mark(index))
            texts.append(text)
        return order, [*texts, rest]

    def words(self, role: str, previous: str | None = None) -> RoleWords:
        """The words around a `role` message after a `previous` one (None: it is the first).

        After and before words of neighbouring messages together are exactly what the template writes
        between their contents, wherever it renders such a conversation. Where it never lets `role`
        follow `previous`, the words are those it uses elsewhere. A template that folds the system
        message into the first user message ([INST]) has all that joins the two in the system message's
        after words, and nothing before the user message that follows.

        Raises ChatTemplateError where there is no template or it knows no such role.
        """
        key = (role, previous)
        if key not in self._words:
            self._renderer.require_template()
            self._words[key] = RoleWords(self._before(role, previous), self._after(role))
        return self._words[key]

    def opening(self, role: str) -> RoleWords:
        """The words around a `role` message that begins a conversation, with a system message that the
        template puts before it. Raises ChatTemplateError as `words`."""
        words = self.words(role)
        return RoleWords(self._renderer.before_first(role) or words.before, words.after)

    @cached_property
    def beginning(self) -> str:
        """The words that begin a conversation, up to its first content, without BOS.

        Raises ChatTemplateError where there is no template.
        """
        role = "system" if self.has_role("system") else "user"
        return self._renderer.before_first(role) or ""

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools of a request. Raises ChatTemplateError as `beginning`."""
        self._renderer.require_template()
        function = {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {}}}
        tools = [{"type": "function", "function": function}]
        for roles in (["user"], ["system", "user"]):
            texts = self._renderer.around_contents(roles, {"tools": tools})
            if texts is not None:
                return texts != self._renderer.around_contents(roles)
        return False

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
        message and no BOS in front. Tools that the template writes into the system message, which the
        PML part may hold already, come in a system message of their own.

        Raises ChatTemplateError where the template refuses the conversation, with its own words.
        """
        self._renderer.require_template()
        options = dict(template_kwargs, add_generation_prompt=add_generation_prompt)
        head, tail = self._continue(previous_roles, messages, options)
        if not tools:
            return self._without_after(tail, previous_roles)
        options["tools"] = list(tools)
        head_with_tools, tail_with_tools = self._continue(previous_roles, messages, options)
        if head_with_tools == head and tail_with_tools.startswith(self._after_last(previous_roles)):
            return self._without_after(tail_with_tools, previous_roles)
        return self._with_tools(messages, options)

    # Words

    def _after(self, role: str) -> str:
        if role not in self._afters:
            self._afters[role] = self._find_after(role)
        return self._afters[role]

    def _find_after(self, role: str) -> str:
        last = self._renderer.after_last(role)
        between = self._renderer.between(role, USUAL_NEXT.get(role, "user"))
        if last is None and between is None:
            raise ChatTemplateError(f"the model's chat template has no {role!r} role")
        if last is None or between is None:
            return last or between or ""
        if between.startswith(last):
            return last
        # What ends a last message is not what joins it to the next one. A system message is never the
        # last; of any other, what both have in common belongs to the message.
        return between if role == "system" else common_start(last, between)

    def _before(self, role: str, previous: str | None) -> str:
        if previous is None:
            return self._before_first(role)
        between = self._renderer.between(previous, role)
        if between is not None and between.startswith(after := self._after(previous)):
            return between[len(after) :]
        if role in _USUAL_PREVIOUS and previous != _USUAL_PREVIOUS[role]:
            return self._before(role, _USUAL_PREVIOUS[role])
        return self._before_first(role)

    def _before_first(self, role: str) -> str:
        first = self._renderer.before_first(role)
        usual = self._before_in_the_middle(role)
        if first is None and usual is None:
            raise ChatTemplateError(f"the model's chat template has no {role!r} role")
        if first is None or usual is None:
            return first or usual or ""
        # A template may begin with a system message of its own: that is not this message's.
        return usual if first.endswith(usual) else first

    def _before_in_the_middle(self, role: str) -> str | None:
        """The words before a message in the middle of a conversation, without BOS, or None."""
        previous = _USUAL_PREVIOUS.get(role)
        between = self._renderer.between(previous, role) if previous else None
        if previous is None or between is None:
            return None
        after = self._after(previous)
        return between[len(after) :].removeprefix(self._renderer.bos) if between.startswith(after) else None

    # Continuing

    def _continue(
        self, previous_roles: Sequence[str], messages: Sequence[Message], options: Mapping[str, Any]
    ) -> tuple[str, str]:
        """A conversation's text before and after the content of the PML part's last message."""
        if not previous_roles and messages and messages[0].get("role") == "system":
            return "", self._renderer.render(messages, options)
        refused: ChatTemplateError | None = None
        for roles in _beginnings(previous_roles):
            try:
                rendered = self._renderer.render([*marked_messages(roles), *messages], options)
            except ChatTemplateError as error:
                refused = refused or error
                continue
            head, found, tail = rendered.partition(mark(len(roles) - 1))
            if found and self._is_head(head, roles, options):
                return head, tail
        raise refused or ChatTemplateError(
            "the model's chat template writes later messages before the prompt's own roles"
        )

    def _is_head(self, head: str, roles: Sequence[str], options: Mapping[str, Any]) -> bool:
        """Whether `head` holds no more than these roles: some templates move the system message down."""
        # Without variables of its own, a conversation begins in one of a few ways: found right once.
        is_usual = options.keys() == {"add_generation_prompt"}
        if is_usual and (head, *roles) in self._heads:
            return True
        for end in (["user"], ["assistant"], []):
            texts = self._renderer.around_contents([*roles, *end], options)
            if texts is not None:
                alone = [text for i in range(len(roles)) for text in (texts[i], mark(i))]
                if head != "".join(alone[:-1]):
                    return False
                if is_usual:
                    self._remember_head(head, roles)
                return True
        return True

    def _remember_head(self, head: str, roles: Sequence[str]) -> None:
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads.add((head, *roles))

    def _after_last(self, previous_roles: Sequence[str]) -> str:
        return self._after(previous_roles[-1]) if previous_roles else ""

    def _without_after(self, tail: str, previous_roles: Sequence[str]) -> str:
        if previous_roles:
            return tail.removeprefix(self._after(previous_roles[-1]))
        # The PML part holds no role: the cut is after an assistant's message, or there was none.
        return tail.removeprefix(self._after("assistant")).removeprefix(self._renderer.bos)

    def _with_tools(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """Messages after a system message that holds nothing but the tools."""
        start = marked_messages(["system"])
        rendered = self._renderer.render([*start, *messages], options)
        without = self._renderer.render([*start, *messages], {**options, "tools": None})
        if rendered == without:
            raise ChatTemplateError(
                "the model's chat template writes tools into a message that the prompt's PML holds already"
            )
        head, _, tail = rendered.partition(mark(0))
        after = self._after("system")
        if head == without.partition(mark(0))[0] and tail.startswith(after):
            # They stand in the first of the messages instead.
            return tail[len(after) :]
        return head.removeprefix(self._renderer.bos) + tail


def _beginnings(previous_roles: Sequence[str]) -> list[list[str]]:
    """Conversations that can stand for the PML part, the likeliest first."""
    if not previous_roles:
        return [["user", "assistant"]]
    shortest = {"assistant": ["user", "assistant"]}
    last = previous_roles[-1]
    return [list(previous_roles), shortest.get(last, [last])]
