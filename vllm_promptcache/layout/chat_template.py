"""The words that a model's chat template puts before and after messages (PML page, "Schema elements").

A template is a program, not a table, so its words are found by rendering conversations whose contents
are marks, and cutting between the marks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.clock import EVENING, MORNING, TemplateClock
from vllm_promptcache.layout.template_renderer import (
    USUAL_NEXT,
    Message,
    TemplatedTokenizer,
    TemplateRenderer,
    common_start,
    mark,
)

_USUAL_PREVIOUS = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True)
class RoleWords:
    """The text before and after the content of a message."""

    before: str
    after: str


class ChatTemplate:
    """A tokenizer's chat template; `chat_template` (Jinja text) replaces the tokenizer's own.

    BOS is never part of a first message's words: it is the schema's first token (PML page, "Text").
    """

    def __init__(
        self, tokenizer: TemplatedTokenizer, chat_template: str | None = None, now: datetime | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._renderer = TemplateRenderer(tokenizer, chat_template, now)
        self._clock = TemplateClock(tokenizer, chat_template)
        self._stamp = ""
        self._words: dict[tuple[str, str | None], RoleWords] = {}
        self._afters: dict[str, str] = {}

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
        # What another thread forgets meanwhile is found here all the same.
        words = None if self.tells_hours else self._words.get(key)
        if words is None:
            self._renderer.require_template()
            self._afters.pop(role, None)
            words = self._words[key] = RoleWords(self._before(role, previous), self._after(role))
        return words

    def opening(self, role: str) -> RoleWords:
        """The words around a `role` message that begins a conversation, with a system message that the
        template puts before it. Raises ChatTemplateError as `words`."""
        words = self.words(role)
        return RoleWords(self._renderer.before_first(role) or words.before, words.after)

    def beginning(self) -> str:
        """The words that begin a conversation, up to its first content or to the date, without BOS.

        Raises ChatTemplateError where there is no template.
        """
        role = "system" if self.has_role("system") else "user"
        return self._clock.undated(self._renderer.before_first(role) or "")

    # What changes with time

    def catch_up(self) -> str:
        """Forget words in which the template says another date now. Returns what is the same as long as it
        says the same one: nothing for a template that says none."""
        stamp = self._clock.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self._words.clear()
            self._afters.clear()
        return stamp

    @property
    def tells_hours(self) -> bool:
        """Whether it writes what changes within a day."""
        return self._clock.tells_hours

    def timed(self, role: str, previous: str | None, is_first: bool) -> tuple[bool, bool]:
        """Whether the words before and after a message change within a day; `is_first` as in `opening`."""
        if not self.tells_hours or self._clock.is_restless:
            return self.tells_hours, self.tells_hours
        morning, evening = (
            template.opening(role) if is_first else template.words(role, previous) for template in self._at
        )
        return morning.before != evening.before, morning.after != evening.after

    @cached_property
    def _at(self) -> list[ChatTemplate]:
        """The same at two times of a day."""
        return [ChatTemplate(self._tokenizer, self._chat_template, now) for now in (MORNING, EVENING)]

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

    # Words

    def _after(self, role: str) -> str:
        after = self._afters.get(role)
        if after is None:
            after = self._afters[role] = self._find_after(role)
        return after

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
