"""From a request's PML to what the engine is asked to run."""

from __future__ import annotations

import pytest

from tests.byte_tokenizer import byte_tokenizer, plan_lines
from tests.frontend.support import MAX_MODEL_LEN, FrontEnd, StoreConnection, schema
from vllm_promptcache.blocks.wire import composition_from_wire, keys_from_wire
from vllm_promptcache.contract.repair import FULL, NONE, Repair
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.composer import ComposedPrompt, Turns
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.options import PromptOptions

TRAVEL = schema("travel", sea="by the sea. ", snow="in the snow. ")
PROMPT = "<prompt schema='travel'><snow/></prompt>"


@pytest.fixture
def front_end() -> FrontEnd:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    return front_end


def text(front_end: FrontEnd, pml: object, *texts: str, **options: object) -> list[ComposedPrompt]:
    composing = front_end.composer.compose_texts(pml, PromptOptions.of(**options), texts or [""])
    return run_sync(composing)


def chat(front_end: FrontEnd, pml: str, *messages: tuple[str, str], **turns: object) -> ComposedPrompt:
    said = [{"role": role, "content": content} for role, content in messages]
    composing = front_end.composer.compose_chat(pml, PromptOptions(), Turns(said, **turns))  # type: ignore[arg-type]
    return run_sync(composing)


def lines(prompt: ComposedPrompt) -> list[str]:
    return plan_lines(prompt.plan, byte_tokenizer())


def test_texts_follow_the_pml_each_in_a_prompt_of_its_own(front_end: FrontEnd) -> None:
    first, second = text(front_end, PROMPT, "Go", "Ski")
    assert lines(first) == ["0 travel: travel", "18 travel/snow: in the snow. ", "31 new prompt: Go"]
    assert lines(second)[2:] == ["31 new prompt: Ski"]
    assert bytes(byte_tokenizer().decode(first.token_ids), "ascii") == b"travelin the snow. Go"


def test_an_empty_text_computes_the_last_token_anew(front_end: FrontEnd) -> None:
    (prompt,) = text(front_end, PROMPT)
    assert prompt.plan.num_new_tokens == 1 and prompt.plan.num_cached_tokens == 6 + 12


def test_the_wire_names_registered_units_and_describes_others(front_end: FrontEnd) -> None:
    (registered,) = text(front_end, PROMPT, "Go")
    assert "texts" not in registered.to_wire()
    other = TRAVEL.replace("travel", "journey").replace("snow.", "ice.")
    (inline,) = text(front_end, f"<pml>{other}<prompt schema='journey'><snow/></prompt></pml>", "Go")
    wire = inline.to_wire()
    assert set(wire["texts"]) == {digest for digest, _ in wire["units"]} and len(wire["units"]) == 2
    assert composition_from_wire(wire, keys_from_wire(wire["units"])).num_tokens == len(inline.token_ids)


def test_a_prompt_composed_before_its_schema_went_brings_the_texts(front_end: FrontEnd) -> None:
    """Between composing and sending, a schema can be replaced: the engine must not be asked for it."""
    (prompt,) = text(front_end, PROMPT, "Go")
    front_end.register(TRAVEL.replace("snow.", "ice."))
    assert set(prompt.to_wire()["texts"]) == {digest for digest, _ in prompt.to_wire()["units"]}
    (newer,) = text(front_end, PROMPT, "Go")
    assert "texts" not in newer.to_wire() and newer.plan.digest != prompt.plan.digest


def test_a_schema_in_the_request_comes_before_a_registered_one(front_end: FrontEnd) -> None:
    other = TRAVEL.replace("snow.", "ice.")
    (prompt,) = text(front_end, f"<pml>{other}{PROMPT}</pml>")
    assert "in the ice" in lines(prompt)[1]
    (same,) = text(front_end, f"<pml>{TRAVEL}{PROMPT}</pml>")
    assert same.entry is front_end.registry["travel"]


def test_schemas_of_requests_are_laid_out_once(front_end: FrontEnd) -> None:
    document = f"<pml>{schema('own', m='text')}<prompt schema='own'><m/></prompt></pml>"
    (first,), (second,) = text(front_end, document, "a"), text(front_end, document, "b")
    assert first.entry is second.entry
    (other,) = text(front_end, document + " ", "a")
    assert other.entry is not first.entry


def test_without_reuse_all_is_new_at_the_same_positions(front_end: FrontEnd) -> None:
    (prompt,) = text(front_end, PROMPT, "Go", reuse=False)
    assert lines(prompt) == [
        "0 new full:travel: travel",
        "18 new full:travel/snow: in the snow. ",
        "31 new prompt: Go",
    ]
    (full,) = text(front_end, PROMPT, "Go", repair="full")
    assert (lines(full), full.to_wire()) == (lines(prompt), prompt.to_wire())
    (reused,) = text(front_end, PROMPT, "Go")
    assert prompt.token_ids == reused.token_ids
    assert (prompt.plan.units, prompt.plan.num_cached_tokens) == ((), 0)
    assert prompt.plan.next_position == reused.plan.next_position


def test_messages_follow_as_turns_and_the_generation_prompt_comes_last(front_end: FrontEnd) -> None:
    prompt = chat(front_end, PROMPT, ("user", "Where?"))
    said = byte_tokenizer().decode(prompt.plan.segments[-1].token_ids)  # type: ignore[union-attr]
    assert said == "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    without = chat(front_end, PROMPT, ("user", "Where?"), add_generation_prompt=False)
    assert len(prompt.token_ids) - len(without.token_ids) == len("<|im_start|>assistant\n")


def test_messages_may_be_empty_after_a_user_message(front_end: FrontEnd) -> None:
    asked = PROMPT.replace("</prompt>", "<user>Where?</user></prompt>")
    prompt = chat(front_end, asked)
    assert byte_tokenizer().decode(prompt.token_ids).endswith("Where?<|im_end|>\n<|im_start|>assistant\n")
    for pml in (PROMPT, asked.replace("user>", "assistant>"), asked.replace("Where?", "")):
        with pytest.raises(RefusedError, match="messages may be empty only"):
            chat(front_end, pml)


@pytest.mark.parametrize(
    ("pml", "status", "what"),
    [
        ("<prompt schema='travl'/>", 404, "unknown schema 'travl'; did you mean 'travel'"),
        ("<prompt schema='travel'><ice/></prompt>", 400, "pml:1:25: prompt/ice: unknown module"),
        (TRAVEL, 400, "no prompt"),
        ("<prompt", 400, "not well-formed"),
        ("x" * 2000, 413, "larger"),
    ],
)
def test_wrong_documents(pml: str, status: int, what: str) -> None:
    front_end = FrontEnd(max_document_bytes=1000)
    front_end.register(TRAVEL)
    with pytest.raises(PMLError, match=what) as caught:
        text(front_end, pml)
    assert caught.value.status == status


def test_pml_is_a_string(front_end: FrontEnd) -> None:
    with pytest.raises(RefusedError, match="must be a string"):
        text(front_end, {"schema": "travel"})


def test_schemas_of_requests_can_be_forbidden() -> None:
    front_end = FrontEnd(allow_request_schemas=False)
    front_end.register(TRAVEL)
    assert text(front_end, PROMPT.replace("<snow/>", "<!-- <schema> --><snow/>"))
    with pytest.raises(RefusedError, match="no schemas from requests") as caught:
        text(front_end, f"<pml>{schema('own')}<prompt schema='own'/></pml>")
    assert caught.value.status == 403


def test_a_forbidden_schema_is_neither_laid_out_nor_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    front_end = FrontEnd(allow_request_schemas=False)
    monkeypatch.setattr(front_end.registry.builder, "build", None)
    document = f"<pml>{schema('own')}<prompt schema='own'/></pml>"
    with pytest.raises(RefusedError, match="no schemas from requests"):
        text(front_end, document)
    assert not front_end.composer._memory._documents


def test_generation_ends_where_positions_run_out(front_end: FrontEnd) -> None:
    (prompt,) = text(front_end, PROMPT, "x" * 900)
    assert prompt.max_new_tokens == MAX_MODEL_LEN - 931
    with pytest.raises(PMLError, match="needs one to generate at"):
        text(front_end, PROMPT, "x" * 993)


def test_blocks_that_link_tokens_cut_are_private() -> None:
    front_end = FrontEnd(StoreConnection(num_blocks=40, pin_limit=20))
    front_end.register(schema("s", m="m" * 70, n="n" * 70))
    # A block of each of two is shared no more, and of one none.
    pml = "<prompt schema='s'><m/><n/></prompt>"
    for link_tokens, num_cut in ((16, 16), (17, 32), (70, 64)):
        (plain,), (linked,) = (
            text(front_end, pml, "x", repair=repair) for repair in ("none", f"link:{link_tokens}")
        )
        in_blocks = 4 if link_tokens == 70 else 0  # all of n is new: its blocks are not needed
        assert linked.max_new_tokens == plain.max_new_tokens - num_cut + 16 * in_blocks


def test_generation_ends_where_blocks_run_out() -> None:
    front_end = FrontEnd(StoreConnection(num_blocks=40, pin_limit=20))
    front_end.register(schema("s", m="m" * 100))
    pml = "<prompt schema='s'><m/></prompt>"
    # 20 blocks cannot be pinned away; 6 hold the module, whose last 4 tokens are copied beside 10 new.
    (prompt,) = text(front_end, pml, "x" * 10)
    assert prompt.max_new_tokens == 14 * 16 - 1 - 4 - 10
    run_sync(front_end.registry.pin("s"))
    (pinned,) = text(front_end, pml, "x" * 10)
    assert pinned.max_new_tokens == 20 * 16 - 1 - 4 - 10
    composing = front_end.composer.compose_texts(pml, PromptOptions(), ["x" * 10], adapter=True)
    assert run_sync(composing)[0].max_new_tokens == prompt.max_new_tokens


def test_what_the_cache_has_no_room_to_reuse_is_computed() -> None:
    """170 tokens fill 10 blocks, and encoding them takes 11 more: as a plain prompt they fit in 20."""
    front_end = FrontEnd(StoreConnection(num_blocks=40, pin_limit=20))
    front_end.register(schema("s", m="m" * 170), schema("alone", m="m" * 170).replace(">alone<", "><"))
    (prompt,) = text(front_end, "<prompt schema='s'><m/></prompt>", "x")
    assert prompt.no_room and prompt.to_wire()["no_room"]
    assert (prompt.plan.num_cached_tokens, prompt.plan.num_new_tokens) == (0, 172)
    assert prompt.max_new_tokens == 20 * 16 - 172
    # Alone they are encoded in the blocks that they then keep.
    (alone,) = text(front_end, "<prompt schema='alone'><m/></prompt>", "x")
    assert not alone.no_room and alone.plan.num_cached_tokens == 170


def test_a_prompt_that_could_never_be_admitted_is_refused() -> None:
    """320 tokens leave no block to write in, whether reused or computed."""
    front_end = FrontEnd(StoreConnection(num_blocks=40, pin_limit=20))
    front_end.register(schema("s", m="m" * 320))
    with pytest.raises(RefusedError, match="KV blocks"):
        text(front_end, "<prompt schema='s'><m/></prompt>", "x")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([], "must be an object"),
        ({"reus": False}, "unknown option 'reus'; did you mean 'reuse'"),
        ({"repair": "link:16", "ttl": 5}, r"unknown option 'ttl'.*\(known options: reuse, repair\)"),
        ({"reuse": "no"}, "true or false"),
        ({"repair": "lnk:16"}, "unknown repair 'lnk:16'; allowed are 'none', 'full', 'link:K'"),
        ({"repair": 16}, "unknown repair 16"),
        ({"repair": "link:0"}, "so many tokens are not allowed.*from 1 to 1024"),
        (
            {"reuse": False, "repair": "link:16"},
            "without 'reuse' all is computed, as with 'full', not 'link:16'",
        ),
    ],
)
def test_wrong_options(value: object, what: str) -> None:
    with pytest.raises(RefusedError, match=what) as caught:
        PromptOptions.from_request(value)
    assert (caught.value.status, caught.value.kind) == (400, "PMLError")


def test_options() -> None:
    assert PromptOptions.from_request(None) == PromptOptions.from_request({"reuse": True}) == PromptOptions()
    assert PromptOptions.from_request({"reuse": False}) == PromptOptions(FULL)
    assert PromptOptions.from_request({"reuse": False, "repair": "full"}) == PromptOptions(FULL)
    assert PromptOptions.from_request({"repair": "none"}) == PromptOptions(NONE)
    assert PromptOptions.from_request({"repair": "tail+link:8"}) == PromptOptions(Repair.parse("link:8+tail"))


def test_repairs_are_the_request_s_or_the_default() -> None:
    front_end = FrontEnd(repair="link:4")
    front_end.register(TRAVEL.replace("<schema ", "<schema encode='isolated' "))
    (default,), (other,), (none,) = (
        text(front_end, PROMPT, "Go", **options) for options in ({}, {"repair": "link:2"}, {"repair": "none"})
    )
    assert lines(default)[1:3] == ["18 new link:travel/snow: in t", "22 travel/snow: he snow. "]
    assert [p.plan.num_repaired_tokens for p in (default, other, none)] == [4, 2, 0]
    assert default.to_wire()["repaired"] == [[0, 4]]
    assert "repaired" not in none.to_wire()
    assert default.token_ids == none.token_ids
