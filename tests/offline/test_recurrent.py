"""Models with recurrent layers: prompts in PML run as the plain prompts of their tokens.

A Llama stands for them, as vLLM's prefix cache for such models does not run on CPUs: the plugin asks the
configuration, and vLLM does the rest. `python -m benchmarks models` has real ones, without a prefix cache.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

from vllm import SamplingParams
from vllm.inputs import TokensPrompt

from vllm_promptcache import LLM
from vllm_promptcache.engine import models
from vllm_promptcache.frontend.errors import RefusedError

pytestmark = pytest.mark.engine

SCHEMA = f"""<schema name="notes"><system>Read these.
  <module name="a">{"The sea is warm and clear. " * 40}<parameter name="when" length="9"/></module>
  <union><module name="b">{"The snow is deep and dry. " * 40}</module><module name="c">Rain.</module></union>
</system></schema>"""
PROMPT = '<prompt schema="notes"><a when="in May"/><c/></prompt>'
MESSAGES = [{"role": "user", "content": "What is it like?"}]
PARAMS = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setattr(models, "is_recurrent", lambda model_config: True)
        llm = LLM(
            model=str(tiny_model),
            dtype="float32",
            enforce_eager=True,
            max_model_len=2048,
            max_num_seqs=16,
            block_size=32,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=1 << 28,
        )
        yield llm
        llm.llm_engine.engine_core.shutdown()


def ask(llm: LLM, pml: str, **options: Any) -> tuple[Any, dict[str, int]]:
    (output,) = llm.chat_pml(pml, MESSAGES, PARAMS, **options)
    return output.outputs[0], output.prompt_cache  # type: ignore[attr-defined]


def test_an_answer_is_the_plain_prompts(llm: LLM) -> None:
    llm.add_schema(SCHEMA)
    explained = llm.explain(PROMPT, MESSAGES)
    (segments, token_ids) = (
        explained["segments"],
        [t for s in explained["segments"] for t in s["token_ids"]],
    )
    assert [p for s in segments for p in s["position_ids"]] == list(range(len(token_ids)))
    assert explained["num_cached_tokens"] == 0
    assert any("recurrent layers" in note for note in explained["notes"])
    (plain,) = llm.generate(TokensPrompt(prompt_token_ids=token_ids), PARAMS, use_tqdm=False)
    llm.llm_engine.reset_prefix_cache()
    answer, report = ask(llm, PROMPT)
    assert answer.token_ids == plain.outputs[0].token_ids
    assert (report["tokens_reused"], report["tokens_found"], report["recurrent"]) == (0, 0, 1)
    assert report["tokens_new"] == len(token_ids)


def test_a_prefix_is_found_in_vllms_own_cache(llm: LLM) -> None:
    first, _ = ask(llm, PROMPT)
    again, report = ask(llm, PROMPT, repair="link:16+tail")
    assert again.token_ids == first.token_ids
    assert report["tokens_found"] > 200 and report["tokens_reused"] == 0
    other, report = ask(llm, PROMPT.replace("<c/>", "<b/>"))
    assert report["tokens_found"] > 200 and other.token_ids != first.token_ids


def test_nothing_is_pinned_or_encoded(llm: LLM) -> None:
    with pytest.raises(RefusedError, match="recurrent layers"):
        llm.add_schema(SCHEMA.replace("notes", "pinned"), pin=True)
    assert {m["residency"] for m in llm.schemas()[0]["modules"]} <= {"absent", None}
    counts = llm.prompt_cache_stats()
    assert counts["blocks_pinned"] == counts["units_known"] == counts["units_encoding"] == 0


def test_marks_are_ignored_and_the_answer_says_why(llm: LLM) -> None:
    part = {"type": "text", "text": "The snow is deep. " * 60, "cache_control": {"type": "ephemeral"}}
    messages: list[Any] = [{"role": "user", "content": [part, {"type": "text", "text": "Is it?"}]}]
    (output,) = llm.chat(messages, PARAMS, use_tqdm=False)
    assert "recurrent layers" in output.prompt_cache["marks_ignored"]  # type: ignore[attr-defined]
