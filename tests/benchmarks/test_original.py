"""Schemas of the shapes that the original's examples have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.original.cli import ENCODINGS, SHAPES, divergence, documents
from vllm_promptcache.contract.repair import AUTO
from vllm_promptcache.errors import IssueList
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_chat
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.repairs.repaired import repaired


@pytest.mark.parametrize("encode", ENCODINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_words_behind_modules_are_what_the_default_computes_anew(
    embedded_model: Path, shape: str, encode: str
) -> None:
    document = parse_document(documents(encode)[shape])
    encoder = TextEncoder(AutoTokenizer.from_pretrained(embedded_model))
    layout = build_layout(document.schemas[0], encoder, 4096)
    assert document.prompt is not None and layout.encode == encode
    plan = build_chat(layout, resolve_prompt(layout, document.prompt, IssueList()), Turns())
    anew = repaired(plan, AUTO)
    assert 20 < anew.num_repaired_tokens < plan.num_cached_tokens / 2
    assert len({s.unit for s in plan.segments if hasattr(s, "unit")}) >= 3


def test_divergence_is_in_nats() -> None:
    full = np.log(
        np.array([0.5, 0.5, 0.0], np.float32), where=[True, True, False], out=np.full(3, -np.inf, np.float32)
    )
    other = np.log(np.array([0.25, 0.5, 0.25], np.float32))
    assert divergence(full, full) == 0
    assert divergence(full, other) == pytest.approx(0.5 * np.log(2), abs=1e-6)
