"""Plans of the table of schemas and prompts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tests.cases import CASES, Case
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import NewSegment, Plan
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document


@cache
def encoder_of(model: Path) -> TextEncoder:
    """The model's tokenizer, as the language uses it."""
    from transformers import AutoTokenizer

    return TextEncoder(AutoTokenizer.from_pretrained(model))


@cache
def tokenizer_of(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


@cache
def plan_of(case: Case, model: Path) -> Plan:
    """The plan of a case with a model's tokenizer."""
    schema, prompt = case.texts(tokenizer_of(model))
    return plan_of_texts(schema, prompt, model, case.max_model_len)


@cache
def layout_of_text(schema: str, model: Path, max_model_len: int = 8192) -> SchemaLayout:
    """The layout of a schema in PML."""
    (parsed,) = parse_document(schema).schemas
    return build_layout(parsed, encoder_of(model), max_model_len)


@cache
def plan_of_texts(schema: str, prompt: str, model: Path, max_model_len: int = 8192) -> Plan:
    """The plan of a prompt over a schema, both PML."""
    layout = layout_of_text(schema, model, max_model_len)
    asked = parse_document(prompt).prompt
    assert asked is not None
    return build_plan(layout, asked)


def layout_of(case: Case, model: Path) -> SchemaLayout:
    """The layout that the plan of a case is over."""
    return layout_of_text(case.texts(tokenizer_of(model))[0], model, case.max_model_len)


def units_of(layout: SchemaLayout) -> list[dict[str, Any]]:
    """All units of a schema, as `explain` prints those of a plan."""
    everything = Plan("", "", layout.units, (NewSegment([1], 0, ""),))
    return list(plan_to_json(everything)["units"])


def plan_named(name: str, model: Path, mode: str = "context") -> Plan:
    """The plan of the case with this name."""
    (case,) = [case for case in CASES if case.name == name]
    return plan_of(case.with_encode(mode), model)
