"""What a chat template writes of the date and the time, found out by rendering with other clocks.

Templates are told the time by `strftime_now`, a function that whoever renders may replace. Some tokenizers
have ways of their own: of those, only what has changed since is known.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from functools import cached_property, partial

from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.template_renderer import (
    TemplatedTokenizer,
    TemplateRenderer,
    common_start,
    marked_messages,
)

# Two times of one day, and another day, with no digit of date or time in common where they stand alike.
MORNING, EVENING = datetime(2024, 7, 26, 8, 5, 9), datetime(2024, 7, 26, 21, 47, 38)
OTHER_DAY = datetime(1993, 12, 15, 8, 5, 9)

_TELLS = re.compile(r"strftime|\bnow\b|today|date|time", re.IGNORECASE)
# What has changed twice in so many seconds is no date.
_HOUR_S = 3600.0
_CONVERSATIONS = (["user"], ["system", "user"])


class TemplateClock:
    """Whether a template tells the time, and what it says of the date now."""

    def __init__(self, tokenizer: TemplatedTokenizer, chat_template: str | None) -> None:
        self._tokenizer = tokenizer
        self._renderer = TemplateRenderer(tokenizer, chat_template)
        self._at = [TemplateRenderer(tokenizer, chat_template, now) for now in (MORNING, EVENING, OTHER_DAY)]
        self._stamp: str | None = None
        self._changed_at = -_HOUR_S
        self._is_restless = False

    @cached_property
    def tells_date(self) -> bool:
        """Whether it may write anything of the date or the time."""
        return _TELLS.search(self._renderer.source) is not None

    @cached_property
    def _tells_hours(self) -> bool:
        morning, evening, _ = (self._said(renderer) for renderer in self._at)
        return morning != evening

    @property
    def tells_hours(self) -> bool:
        """Whether it writes what changes within a day."""
        return self.tells_date and (self._is_restless or self._tells_hours)

    @property
    def is_restless(self) -> bool:
        """Whether what it writes has changed so often that nothing of it can be kept."""
        return self._is_restless

    def stamp(self) -> str:
        """What is the same as long as the template says the same of the date. Costs two short renderings."""
        if not self.tells_date:
            return ""
        said = self._day if self.tells_hours else partial(self._said, self._renderer)
        stamp = "" if self._is_restless else said()
        if stamp != self._stamp:
            now = time.monotonic()
            self._is_restless |= now - self._changed_at < _HOUR_S
            self._stamp, self._changed_at = stamp, (now if self._stamp is not None else self._changed_at)
        return stamp

    def undated(self, text: str) -> str:
        """The start of the words that begin a conversation, up to what they say of the date."""
        if not self.tells_date:
            return text
        said = [self._said(renderer) for renderer in self._at]
        start = common_start(said[0], said[2])
        return text if said[0] == said[2] else common_start(text, start)

    def _said(self, renderer: TemplateRenderer) -> str:
        said = []
        for roles in _CONVERSATIONS:
            try:
                said.append(renderer.render(marked_messages(roles), {"add_generation_prompt": True}))
            except ChatTemplateError:
                continue
        return "\0".join(said)

    def _day(self) -> str:
        """The date by the clock of whatever renders."""
        renderer = TemplateRenderer(self._tokenizer, "{{ strftime_now('%Y-%m-%d') }}")
        return renderer.render(marked_messages(["user"]), {})
