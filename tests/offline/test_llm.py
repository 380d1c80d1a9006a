"""The class for scripts, with its engine in this process and in one of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Tiny models gain nothing from threads, and lose much where several processes share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from vllm import SamplingParams

from tests.reference import greedy, load_reference_model
from tests.repairs import repair as repaired_by_definition
from vllm_promptcache import LLM
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.plan.build import NO_TOOLS

pytestmark = pytest.mark.engine

LOADED = f"<schema name='loaded'><module name='m'>{'Some words. ' * 80}</module></schema>"
TRAVEL = f"""<schema name="travel"><system>You plan journeys.</system>
  <module name="sea">{"The sea is warm and clear. " * 40}<parameter name="when" length="4"/></module>
  <module name="snow">{"The snow is deep and dry. " * 40}</module></schema>"""
PROMPT = '<prompt schema="travel"><sea when="in May"/><snow/></prompt>'
MESSAGES = [{"role": "user", "content": "Plan the first morning."}]


@pytest.fixture(scope="module", params=["0", "1"], ids=["in-process", "processes"])
def llm(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("schemas")
    (folder / "loaded.pml").write_text(LOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", request.param)
        llm = LLM(
            model=str(tiny_model),
            prompt_cache={"schemas": [str(folder)], "repair": "link:5"},
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_num_seqs=16,
            kv_cache_memory_bytes=1 << 28,
        )
        llm.add_schema(TRAVEL)
        yield llm
        shutdown = getattr(llm.llm_engine.engine_core, "shutdown", None)
        if shutdown is not None:
            shutdown()


def params(max_tokens: int = 6, **given: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **given)


def test_schemas_given_at_the_start_are_pinned(llm: LLM) -> None:
    loaded, travel = llm.schemas()
    assert (loaded["name"], loaded["pinned"], loaded["modules"][1]["residency"]) == (
        "loaded",
        True,
        "resident",
    )
    assert (travel["name"], travel["pinned"]) == ("travel", False)


@pytest.mark.parametrize(
    ("options", "repair"),
    [
        ({}, "link:5"),
        ({"repair": "none"}, "none"),
        ({"repair": "link:150"}, "link:150"),
        ({"repair": Repair.parse("link:7+tail")}, "link:7+tail"),
        ({"reuse": False}, "full"),
    ],
)
def test_outputs_are_those_of_the_reference(
    llm: LLM, tiny_model: Path, options: dict[str, Any], repair: str
) -> None:
    plain = llm.explain(PROMPT, prompt=" And", repair="none")
    explained = llm.explain(PROMPT, prompt=" And", **options)
    (output,) = llm.generate_pml(PROMPT, params(), prompt=" And", **options)
    model = load_reference_model(tiny_model)
    tokens, _ = greedy(model, repaired_by_definition(plain, repair), 6)
    assert output.outputs[0].token_ids == tokens
    assert output.outputs[0].text == llm.get_tokenizer().decode(tokens)
    report = output.prompt_cache  # type: ignore[attr-defined]
    assert report["tokens_reused"] + report["tokens_encoded"] == explained["num_cached_tokens"]
    num_repaired = plain["num_cached_tokens"] - explained["num_cached_tokens"]
    assert report["tokens_found"] or report["tokens_repaired"] == num_repaired
    assert bool(num_repaired) is (repair != "none")
    assert output.kv_transfer_params is None
    assert output.prompt is not None and output.prompt.endswith("deep and dry.  And")


def test_several_prompts_at_once(llm: LLM) -> None:
    prompts = [PROMPT, PROMPT.replace("<snow/>", ""), PROMPT.replace("in May", "now")]
    together = llm.generate_pml(prompts, params())
    alone = [llm.generate_pml(prompt, params())[0] for prompt in prompts]
    assert [o.outputs[0].text for o in together] == [o.outputs[0].text for o in alone]
    assert together[0].outputs[0].text != together[1].outputs[0].text
    mixed = llm.generate_pml(prompts[:2], [params(2), params(3)])
    assert [len(o.outputs[0].token_ids) for o in mixed] == [2, 3]


def test_chats(llm: LLM, tiny_model: Path) -> None:
    (output,) = llm.chat_pml(PROMPT, MESSAGES, params())
    tokens, _ = greedy(load_reference_model(tiny_model), llm.explain(PROMPT, MESSAGES), 6)
    assert output.outputs[0].token_ids == tokens
    assert output.prompt is not None and output.prompt.endswith("<|im_start|>assistant\n")
    asked = PROMPT.replace("</prompt>", "<user>Where?</user></prompt>")
    assert llm.chat_pml(asked, sampling_params=params())
    turns = [*MESSAGES, {"role": "assistant", "content": "At"}]
    (continued,) = llm.chat_pml(
        PROMPT, turns, params(), add_generation_prompt=False, continue_final_message=True
    )
    assert continued.prompt is not None and continued.prompt.endswith("assistant\nAt")


def test_stop_strings_leave_the_report(llm: LLM) -> None:
    (whole,) = llm.generate_pml(PROMPT, params(20))
    stop = whole.outputs[0].text[8:10]
    (output,) = llm.generate_pml(PROMPT, params(20, stop=stop))
    assert output.outputs[0].finish_reason == "stop"
    assert output.prompt_cache == whole.prompt_cache  # type: ignore[attr-defined]


def test_generation_ends_where_positions_run_out(llm: LLM) -> None:
    pml = PROMPT.replace("<snow/>", "")
    left = 2048 - llm.explain(pml, prompt=" word" * 1500)["next_position"]
    (output,) = llm.generate_pml(pml, params(4000), prompt=" word" * 1500)
    assert (output.outputs[0].finish_reason, len(output.outputs[0].token_ids)) == ("length", left)


def test_schemas_come_and_go(llm: LLM) -> None:
    (described,) = llm.add_schema(
        "<schema name='own'>Text.<module name='m'>More.</module></schema>", pin=True
    )
    assert described["pinned"]
    (output,) = llm.generate_pml("<prompt schema='own'><m/></prompt>", params())
    assert output.prompt_cache["modules_resident"] == 2  # type: ignore[attr-defined]
    llm.remove_schema("own")
    with pytest.raises(PMLError, match="unknown schema 'own'"):
        llm.generate_pml("<prompt schema='own'><m/></prompt>", params())
    with pytest.raises(RefusedError, match="unknown schema"):
        llm.remove_schema("own")


def test_what_is_refused_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(PMLError, match="unknown module"):
        llm.generate_pml([PROMPT, "<prompt schema='travel'><rain/></prompt>"], params())
    with pytest.raises(RefusedError, match="prompt_logprobs"):
        llm.generate_pml(PROMPT, params(prompt_logprobs=1))
    with pytest.raises(RefusedError, match="unknown repair 'link'"):
        llm.generate_pml(PROMPT, params(), repair="link")
    with pytest.raises(RefusedError, match="messages may be empty only"):
        llm.chat_pml(PROMPT, [], params())
    assert not llm.llm_engine.has_unfinished_requests()


def test_plain_prompts_work_beside(llm: LLM) -> None:
    plain = llm.generate(["Once upon a time"], params(), use_tqdm=False)
    assert len(plain[0].outputs[0].token_ids) == 6 and plain[0].kv_transfer_params is None
    assert llm.chat(MESSAGES, params(), use_tqdm=False)  # type: ignore[arg-type]


def test_wrong_settings_and_schemas_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt cache config: unknown repair 'link'"):
        LLM(model="nowhere", prompt_cache={"repair": "link"})
    with pytest.raises(ValueError, match="unknown field pins"):
        LLM(model="nowhere", prompt_cache={"pins": 1})


def test_modules_behind_earlier_turns_are_those_of_the_reference(llm: LLM, tiny_model: Path) -> None:
    """They stand further on than at home, and are reused from the second time on."""
    schema = TRAVEL.replace("travel", "asked").replace(
        '<module name="sea">', '<user>Notes: <module name="sea">'
    )
    llm.add_schema(schema.replace("</schema>", "</user></schema>"))
    pml = '<prompt schema="asked"><sea when="in May"/><snow/></prompt>'
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, *MESSAGES]
    explained = llm.explain(pml, turns, repair="tail")
    assert any("@" in unit["id"] for unit in explained["units"])
    model = load_reference_model(tiny_model)
    tokens, _ = greedy(model, explained, 6)
    for _ in range(2):
        (output,) = llm.chat_pml(pml, turns, params(), repair="tail")
        assert output.outputs[0].token_ids == tokens
    report = output.prompt_cache  # type: ignore[attr-defined]
    assert report["tokens_reused"] == explained["num_cached_tokens"] > 500
    llm.remove_schema("asked")


PASSAGES = [f"Passage {i}. " + "The desk opens at nine. " * (15 + i) for i in range(3)]


def test_marked_parts_of_plain_chats(llm: LLM) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}

    def asked(*order: int, **marked: Any) -> list[Any]:
        passages = [{"type": "text", "text": PASSAGES[i], **marked} for i in order]
        return [{"role": "user", "content": [*passages, {"type": "text", "text": "When?"}]}]

    plain = llm.chat(asked(2, 0), params(), use_tqdm=False)
    assert plain[0].prompt_cache is None  # type: ignore[attr-defined]
    llm.chat([asked(0, 1, 2, **mark), asked(2, 0, **mark)], params(), use_tqdm=False)
    (again,) = llm.chat(asked(2, 0, **mark), params(), use_tqdm=False)
    assert again.prompt_token_ids == plain[0].prompt_token_ids
    report = again.prompt_cache  # type: ignore[attr-defined]
    assert (report["marks_used"], report["tokens_encoded"]) == (2, 0)
    assert report["tokens_reused"] > 150
    (off,) = llm.chat(asked(2, 0, **mark), params(), use_tqdm=False, prompt_cache={"reuse": False})
    assert off.outputs[0].token_ids == plain[0].outputs[0].token_ids
    (short,) = llm.chat([{"role": "user", "content": "Hi", **mark}], params(), use_tqdm=False)
    assert "no marked part has 64 tokens" in short.prompt_cache["marks_ignored"]  # type: ignore[attr-defined]


def test_members_of_pools(llm: LLM, tiny_model: Path) -> None:
    llm.add_schema('<schema name="desk">Answer.<pool name="passages"/></schema>')
    names = ["a/1", "b", "c"]
    puts = llm.add_pool_modules("desk", "passages", dict(zip(names, PASSAGES, strict=True)), encode=True)
    assert [put["status"] for put in puts] == ["registered"] * 3
    pml = '<prompt schema="desk"><passages><use module="c"/><use module="a/1"/></passages> When?</prompt>'
    explained = llm.explain(pml, repair="none")
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 6)
    (output,) = llm.generate_pml(pml, params(), repair="none")
    assert output.outputs[0].token_ids == tokens
    llm.remove_pool_module("desk", "passages", "b")
    assert [member["name"] for member in llm.pool_modules("desk", "passages")] == ["a/1", "c"]
    llm.remove_schema("desk")


def test_tools_that_the_template_does_not_write_are_said(llm: LLM) -> None:
    """SmolLM2's template writes none; what is where they are written is in tests/server/test_tools.py."""
    function = {"name": "hotels", "description": "Finds one.", "parameters": {"type": "object"}}
    schema = "<schema name='agent'><system>You act.<tools/></system></schema>"
    pml = f"<pml>{schema}<prompt schema='agent'/></pml>"
    tools = [{"type": "function", "function": function}]
    explained = llm.explain(pml, MESSAGES, tools=tools)
    assert explained["notes"] == [NO_TOOLS]
    assert explained["lookup"]["units"] == {"agent": "absent"}
    assert "notes" not in llm.explain(pml, MESSAGES)
    assert llm.chat_pml(pml, MESSAGES, params(), tools=tools)[0].outputs[0].token_ids
