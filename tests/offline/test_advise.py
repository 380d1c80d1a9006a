"""Advice from a model: every figure against the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference import greedy, load_reference_model
from tests.repairs import repair as repaired_by_definition
from vllm_promptcache.cli.main import main

pytestmark = pytest.mark.engine

WORDS = ("river", "stone", "market", "winter", "letter", "garden")
SCHEMA = """<schema name="notes" encode="{encode}">
<system>Read these notes. {modules} That is all.</system></schema>"""
MODULES = {
    name: " ".join(f"{word} {i}" for i, word in enumerate(WORDS * n))
    for name, n in (("a", 9), ("b", 5), ("c", 2))
}
PROMPTS = [("a", "b"), ("a", "b", "c"), ("c",)]
ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 27, "max_num_seqs": 16}


def schema(encode: str) -> str:
    modules = "".join(f'<module name="{name}">{text}.</module>' for name, text in MODULES.items())
    return SCHEMA.format(encode=encode, modules=modules)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    (folder / "notes.pml").write_text(schema("isolated"))
    bodies = [
        {
            "pml": f'<prompt schema="notes">{"".join(f"<{name}/>" for name in names)}</prompt>',
            "messages": [{"role": "user", "content": "What did they say?"}],
        }
        for names in PROMPTS
    ]
    (folder / "asked.jsonl").write_text("\n".join(json.dumps(body) for body in bodies))
    return folder


def run(folder: Path, model: Path, *more: str) -> int:
    arguments = ["--model", str(model), "--schema", str(folder / "notes.pml")]
    arguments += ["--prompts", str(folder / "asked.jsonl"), "--dtype", "float32", "--max-model-len", "2048"]
    return main(["advise", *arguments, "--engine-args", json.dumps(ENGINE), *more])


def explain_all(folder: Path, model: Path) -> list[dict[str, Any]]:
    """The prompts without a repair, as `explain` prints them."""
    from transformers import AutoTokenizer

    from vllm_promptcache.contract.explain import plan_to_json
    from vllm_promptcache.errors import IssueList
    from vllm_promptcache.layout.build import build_layout
    from vllm_promptcache.layout.encoder import TextEncoder
    from vllm_promptcache.plan.build import build_chat
    from vllm_promptcache.plan.conversation import Turns
    from vllm_promptcache.plan.resolve import resolve_prompt
    from vllm_promptcache.pml.parser import parse_document

    encoder = TextEncoder(AutoTokenizer.from_pretrained(model))
    (parsed,) = parse_document((folder / "notes.pml").read_text()).schemas
    layout = build_layout(parsed, encoder, 2048)
    plans = []
    for line in (folder / "asked.jsonl").read_text().splitlines():
        body = json.loads(line)
        prompt = parse_document(body["pml"]).prompt
        assert prompt is not None
        resolution = resolve_prompt(layout, prompt, IssueList())
        plans.append(plan_to_json(build_chat(layout, resolution, Turns(body["messages"]))))
    return plans


def unit_anew(explained: dict[str, Any], name: str) -> dict[str, Any]:
    """The prompt with one unit new."""
    unit = next(unit for unit in explained["units"] if unit["id"] == name)
    segments = [
        {"new": True, **{k: unit[k][s["start"] : s["end"]] for k in ("token_ids", "position_ids")}}
        if s.get("unit") == name
        else s
        for s in explained["segments"]
    ]
    return {**explained, "segments": segments}


def test_figures_are_those_of_the_reference(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, tiny_model, "--json") == 0
    said = capsys.readouterr()
    (advice,) = json.loads(said.out)
    model = load_reference_model(tiny_model)
    explained = explain_all(folder, tiny_model)

    def first(plan: dict[str, Any]) -> torch.Tensor:
        return greedy(model, plan, 1)[1][0].double()

    full = [first(repaired_by_definition(plan, "full")) for plan in explained]

    def divergence(index: int, plan: dict[str, Any]) -> float:
        return float((full[index].exp() * (full[index] - first(plan))).sum())

    now = [divergence(i, plan) for i, plan in enumerate(explained)]
    assert (advice["schema"], advice["encode"], advice["questions"]) == ("notes", "isolated", 3)
    assert advice["now"]["divergence"] == pytest.approx(sum(now) / 3, abs=1e-3)
    modules = {module["module"]: module for module in advice["modules"]}
    assert {name: m["questions"] for name, m in modules.items()} == {
        "notes": 3, "notes/a": 2, "notes/b": 2, "notes/c": 2
    }  # fmt: skip
    for name, module in modules.items():
        uses = [i for i, plan in enumerate(explained) if any(s.get("unit") == name for s in plan["segments"])]
        causes = [now[i] - divergence(i, unit_anew(explained[i], name)) for i in uses]
        assert module["causes"] == pytest.approx(sum(causes) / len(causes), abs=1e-3)
    remedies = {remedy["name"]: remedy for remedy in advice["remedies"]}
    repairs = [name.removeprefix("repair ") for name in remedies if name.startswith("repair ")]
    assert {"tail", "link:4", "link:16", "link:64"} <= set(repairs)
    assert 'encode="context"' in remedies
    assert any(name.startswith("<scaffold modules=") for name in remedies)
    assert any(name.startswith('cache="false" on ') for name in remedies)
    for name in repairs:
        repaired = [repaired_by_definition(plan, name) for plan in explained]
        expected = [divergence(i, plan) for i, plan in enumerate(repaired)]
        remedy = remedies[f"repair {name}"]
        assert remedy["divergence"] == pytest.approx(sum(expected) / 3, abs=1e-3)
        new = [
            sum(len(s["token_ids"]) for s in p["segments"] if "new" in s) - p["num_new_tokens"]
            for p in repaired
        ]
        assert remedy["recomputed"] == pytest.approx(sum(new) / 3)
    # All that can see each other do: full attention.
    both = remedies.get('encode="context", <scaffold modules="a b"/>, repair tail')
    assert both is not None and both["divergence"] < advice["now"]["divergence"]
    assert both["blocks"] > 0
    assert advice["suggestion"] in remedies
    assert "prompts asked" in said.err


def test_the_report(folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, tiny_model) == 0
    report = capsys.readouterr().out
    assert report.startswith("schema notes (encode=isolated), 3 prompts\n")
    assert "notes/a" in report and "repair link:16" in report and "Suggestion: " in report


def test_mistakes_are_told_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{")
    assert main(["advise", "--model", "nowhere", "--prompts", str(wrong)]) == 1
    assert "wrong.jsonl:1:1:1: prompts: not JSON" in capsys.readouterr().err
    wrong.write_text("")
    assert main(["advise", "--model", "nowhere", "--prompts", str(wrong)]) == 2
    assert "there is no prompt" in capsys.readouterr().err
