"""Selected tokens: asked of the engine once, remembered, and made new in plans."""

from __future__ import annotations

import pytest

from tests.frontend.support import FrontEnd, StoreLink, schema
from vllm_promptcache.contract.repair import NONE, Repair
from vllm_promptcache.engine.comparison import APART
from vllm_promptcache.frontend import selection
from vllm_promptcache.frontend.composer import ComposedPrompt
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.link import run_sync
from vllm_promptcache.frontend.loading import select_ahead
from vllm_promptcache.frontend.options import PromptOptions

NOTES = schema("notes", a="a" * 40, b="b" * 30, c="c" * 50)
PROMPT = "<prompt schema='notes'><a/><b/></prompt>"


def ask(front_end: FrontEnd, pml: str, repair: str, *, tenant: bool = False) -> ComposedPrompt:
    options = PromptOptions.of(repair=repair)
    return run_sync(front_end.composer.compose_texts(pml, options, ["Go"], tenant=tenant))[0]


def ranges(prompt: ComposedPrompt) -> list[tuple[int, int]]:
    """Positions that are computed anew."""
    segments = [s for s in prompt.plan.segments if getattr(s, "is_repair", False)]
    return [(s.first_position, s.first_position + s.num_tokens) for s in segments]  # type: ignore[union-attr]


@pytest.fixture
def front_end() -> FrontEnd:
    front_end = FrontEnd()
    front_end.register(NOTES)
    return front_end


def test_the_share_of_a_unit_that_moves_most_is_new(front_end: FrontEnd) -> None:
    """Here the last tokens do; `a` has seen all that is before it."""
    assert ranges(ask(front_end, PROMPT, "select:0.1")) == [(5 + 40 + 27, 5 + 40 + 30)]
    assert ranges(ask(front_end, PROMPT, "select:0.5")) == [(5 + 40 + 15, 5 + 40 + 30)]
    assert ask(front_end, PROMPT, "select:0.5").plan.num_repaired_tokens == 15
    assert ranges(ask(front_end, PROMPT, "none")) == []


def test_units_are_compared_when_they_are_first_asked_for(front_end: FrontEnd) -> None:
    calls = front_end.link.calls
    calls.clear()
    ask(front_end, PROMPT, "link:4")
    assert "compare" not in calls
    ask(front_end, PROMPT, "select:0.1")
    assert calls.count("compare") == 2  # begins to encode, has compared
    for repair in ("select:0.1", "select:0.3+tail"):
        ask(front_end, PROMPT, repair)
    assert calls.count("compare") == 2
    ask(front_end, PROMPT.replace("<b/>", "<b/><c/>"), "select:0.1")
    assert calls.count("compare") == 4


def test_deviations_are_forgotten_with_time(front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_REMEMBERED_TOKENS", 60)
    for pml in (PROMPT, PROMPT.replace("b", "c"), PROMPT):
        front_end.link.calls.clear()
        first = ask(front_end, pml, "select:0.1")
        assert "compare" in front_end.link.calls
        assert ranges(ask(front_end, pml, "select:0.1")) == ranges(first)


def test_a_tenant_s_own_schema_is_compared_apart() -> None:
    for tenant, expected in ((True, {APART}), (False, {None})):
        front_end = FrontEnd()
        prompt = ask(front_end, f"<pml>{NOTES}{PROMPT}</pml>", "select:0.1", tenant=tenant)
        assert prompt.plan.num_repaired_tokens == 3
        assert {key.adapter for key in front_end.link.store.units} == expected


def test_schemas_are_ready_for_the_default(front_end: FrontEnd) -> None:
    front_end.link.calls.clear()
    for repair in (NONE, Repair.parse("link:4"), Repair.parse("tail")):
        run_sync(select_ahead(front_end.registry, "notes", repair))
    assert front_end.link.calls == []
    repair = Repair.parse("select:0.1")
    run_sync(select_ahead(front_end.registry, "notes", repair, ["a", "b"]))
    assert front_end.link.calls == ["compare"] * 2
    ask(front_end, PROMPT, "select:0.2")
    assert front_end.link.calls == ["compare"] * 2
    run_sync(select_ahead(front_end.registry, "notes", repair))
    assert front_end.link.calls == ["compare"] * 4
    run_sync(front_end.registry.remove("notes"))
    assert not any(unit.names for unit in front_end.link.store.units.values())


def test_without_room_it_is_refused_and_schemas_are_loaded_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    front_end = FrontEnd(StoreLink(num_blocks=20, pin_limit=2))
    front_end.register(schema("notes", a="a" * 150, b="b" * 138))
    with pytest.raises(RefusedError, match=r"tokens cannot be selected: .* KV blocks") as caught:
        ask(front_end, PROMPT.replace("<a/>", ""), "select:0.1")
    assert (caught.value.status, caught.value.field) == (507, "prompt_cache")
    run_sync(select_ahead(front_end.registry, "notes", Repair.parse("select:0.1")))
    assert "no tokens of schema 'notes' are selected ahead" in caplog.text
    assert ask(front_end, PROMPT.replace("<a/>", ""), "link:4").plan.num_cached_tokens == 5 + 138
