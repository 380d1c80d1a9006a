"""Chat templates that write the date or the time, under two clocks."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from tests.byte_tokenizer import CHATML, byte_tokenizer, plan_text
from tests.frontend.support import FrontEnd
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.frontend.composer import ComposedPrompt, Turns
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.layout.encoder import TextEncoder

FIRST = datetime(2026, 5, 3, 9, 5, 7)
DATES = {
    "{{ strftime_now('%d %b %Y') }}": "03 May 2026",
    "{{ strftime_now('%A') }}": "Sunday",
    "{{ strftime_now('%Y-%m-%d') }}": "2026-05-03",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%B %d, %Y') if strftime_now is"
    " defined else '26 Jul 2024' %}{% endif %}{{ date_string }}": "May 03, 2026",
}
TIMES = {
    "{{ strftime_now('%H:%M') }}": "09:05",
    "{{ strftime_now('%d %b %Y, %H:%M:%S') }}": "03 May 2026, 09:05:07",
    "{{ strftime_now('%c') }}": "Sun May  3 09:05:07 2026",
}
SCHEMA = "<schema name='s'><system>Be brief. <module name='a'>Grass is green.</module></system></schema>"
PML = "<prompt schema='s'><a/></prompt>"
ASKED = [{"role": "user", "content": "Which?"}]


class Clock:
    """The time as whoever renders templates is told it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self
        self.time = FIRST

        class Frozen(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return clock.time

        monkeypatch.setattr(chat_template_utils, "datetime", Frozen)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def dated(date: str) -> str:
    """A template that writes this in the system message."""
    start = "{{ '<|im_start|>' + m.role + '\\n'"
    told = "{% if m.role == 'system' %}Date: " + date + "\n{% endif %}"
    return CHATML.replace(f"{start} + m.content", start + " }}" + told + "{{ m.content")


def chat(front_end: FrontEnd, pml: str = PML) -> ComposedPrompt:
    return run_sync(front_end.composer.compose_chat(pml, PromptOptions(), Turns(ASKED)))


def text(front_end: FrontEnd, pml: str = PML) -> ComposedPrompt:
    return run_sync(front_end.composer.compose_texts(pml, PromptOptions(), ["Which?"]))[0]


def said(prompt: ComposedPrompt) -> str:
    return plan_text(prompt.plan, byte_tokenizer())


def pinned_text(prompt: ComposedPrompt) -> str:
    """What is reused, or seen by what is reused."""
    return "".join(byte_tokenizer().decode(unit.token_list) for unit in prompt.plan.units)


@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize("compose", [chat, text])
def test_a_date_that_has_changed_is_encoded_anew(clock: Clock, date: str, compose: Any) -> None:
    front_end = FrontEnd(template=dated(date))
    front_end.register(SCHEMA, pin=True)
    first = compose(front_end)
    assert f"Date: {DATES[date]}\nBe brief." in said(first) and DATES[date] in pinned_text(first)
    assert compose(front_end).entry is first.entry
    clock.time += timedelta(hours=5)
    assert compose(front_end).entry is first.entry, "the date is the same"
    clock.time += timedelta(days=9)
    then = compose(front_end)
    assert DATES[date] not in said(then) and "Date: " in said(then)
    assert DATES[date] not in pinned_text(then), "no state has seen the old date"
    num_cached = len(DATES[date]) - len(said(then).partition("Date: ")[2].partition("\n")[0])
    assert first.plan.num_cached_tokens - num_cached == then.plan.num_cached_tokens > 40
    assert then.entry is front_end.registry["s"] and then.entry is not first.entry
    assert then.entry.is_pinned and then.entry.source == first.entry.source
    # As a front end says that begins now.
    anew = FrontEnd(template=dated(date))
    anew.register(SCHEMA)
    assert said(compose(anew)) == said(then)


@pytest.mark.parametrize("date", TIMES)
@pytest.mark.parametrize("compose", [chat, text])
def test_the_time_of_the_day_is_new_text(clock: Clock, date: str, compose: Any) -> None:
    front_end = FrontEnd(template=dated(date))
    front_end.register(SCHEMA)
    first = compose(front_end)
    assert f"<|im_start|>system\nDate: {TIMES[date]}\nBe brief. Grass is green.<|im_end|>" in said(first)
    assert "Date" not in pinned_text(first)
    clock.time += timedelta(hours=7, minutes=13)
    then = compose(front_end)
    assert then.entry is first.entry, "nothing is encoded anew within a day"
    assert said(then) != said(first) and "Date: " in said(then) and TIMES[date] not in said(then)
    units = {s.unit.id for s in then.plan.segments if isinstance(s, CachedSegment)}
    assert "s/a" in units


@pytest.mark.parametrize("date", [*DATES, *TIMES])
def test_schemas_of_requests_are_not_remembered_beyond_a_date(clock: Clock, date: str) -> None:
    front_end = FrontEnd(template=dated(date))
    document = f"<pml>{SCHEMA}{PML}</pml>"
    first = chat(front_end, document)
    clock.time += timedelta(days=400, hours=3, minutes=2)
    then = chat(front_end, document)
    now = {**DATES, **TIMES}[date]
    assert now in said(first) and now not in said(then) and now not in pinned_text(then)


def test_what_a_prompt_s_own_messages_say_of_the_date(clock: Clock) -> None:
    front_end = FrontEnd(template=dated("{{ strftime_now('%d %b %Y') }}"))
    front_end.register("<schema name='s'><module name='a'>A</module></schema>")
    pml = "<prompt schema='s'><a/><system>S</system><user>U</user></prompt>"
    assert "Date: 03 May 2026\nS" in said(text(front_end, pml))
    clock.time += timedelta(days=1)
    assert "Date: 04 May 2026\nS" in said(text(front_end, pml))


class Telling:
    """A tokenizer whose templates have a clock of its own."""

    def __init__(self, template: str) -> None:
        self.time = "noon"
        self._tokenizer: Any = byte_tokenizer(chat_template=template)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def apply_chat_template(self, conversation: Any, **options: Any) -> str:
        """As the tokenizer's."""
        render = self._tokenizer.apply_chat_template
        return str(render(conversation, now=lambda: self.time, **options))


def test_a_clock_of_the_template_s_own_is_watched() -> None:
    """`now()` and the like cannot be told another time: what has changed is laid out anew, or, where it
    changes all the time, new text."""
    front_end = FrontEnd(template=dated("{{ now() }}"))
    tokenizer: Any = Telling(dated("{{ now() }}"))
    front_end.registry.builder.encoder = TextEncoder(tokenizer)
    front_end.register(SCHEMA)
    assert "Date: noon" in pinned_text(chat(front_end))
    tokenizer.time = "one o'clock"
    assert "Date: one o'clock" in pinned_text(chat(front_end))
    for hour in ("two", "three", "four"):
        tokenizer.time = f"{hour} o'clock"
        prompt = chat(front_end)
        assert f"Date: {hour} o'clock\nBe brief." in said(prompt)
        assert "clock" not in pinned_text(prompt).replace(f"{hour} o'clock", "")
    assert "clock" not in pinned_text(prompt)


def test_a_date_that_is_fixed_is_never_looked_at_again(clock: Clock) -> None:
    template = dated("{{ date_string | default('26 Jul 2024') }}")
    front_end = FrontEnd(template=template)
    front_end.register(SCHEMA)
    first = chat(front_end)
    clock.time += timedelta(days=1)
    then = chat(front_end)
    assert said(then) == said(first) and "Date: 26 Jul 2024" in pinned_text(then)
    assert then.entry is first.entry
