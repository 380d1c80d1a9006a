"""What the engine reports of answers, against the oracle."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.quality.engine import EngineSettings, QualityEngine
from benchmarks.quality.measure import Measurement, Quality
from benchmarks.quality.metrics import Distribution, divergence
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import Passage, Question
from benchmarks.quality.rows import FirstTokens, Rows
from benchmarks.quality.ways import FULL, Way, read_ways
from tests.reference import build_sequence, load_reference_model
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.layout.encoder import TextEncoder

pytestmark = pytest.mark.engine

WAYS = (
    "full,isolated,context,scaffold,sequence,sequence+tail,isolated+link:33,context+link:8,context+link:40,context+link:500,"
    "context+tail,context+tail+link:8,scaffold+tail"
)
MAX_ERROR = 1e-3


def _passage(number: int, num_words: int) -> Passage:
    words = ["river", "stone", "market", "winter", "letter", "garden", "music", "horse", "island", "forest"]
    text = " ".join(words[(i * (number + 3)) % 10] + str(i * number % 7) for i in range(num_words))
    return Passage(f"Passage {number}", f"{text}.")


PASSAGES = tuple(_passage(number, num_words) for number, num_words in enumerate((40, 9, 70, 25), 1))
QUESTIONS = [
    Question("a", PASSAGES, "What lies behind the river?", ("a stone garden & <b>more</b>", "nothing")),
    Question("b", PASSAGES, "Who wrote the letter?", ("horse",)),
    Question("c", PASSAGES[1:3], "Where is the island?", ("south of the market",)),
    Question("d", PASSAGES[:2], "What was left out?", ("a letter",), ((1, PASSAGES[3]),)),
]


@pytest.fixture(scope="module")
def maker(tiny_model: Path, engine: QualityEngine) -> PromptMaker:
    encoder = TextEncoder(AutoTokenizer.from_pretrained(tiny_model))
    return PromptMaker(encoder, 4096)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[QualityEngine]:
    settings = EngineSettings(str(tiny_model), block_size=32, max_model_len=4096, kv_gib=0.25, threads=1)
    engine = QualityEngine(settings)
    yield engine
    engine.close()


@torch.inference_mode()
def expected_logprobs(model: Any, plan: Plan, answer: list[int]) -> torch.Tensor:
    """Log-probabilities at the prompt's last token and each of the answer's, by definition."""
    explained = plan_to_json(plan)
    end = explained["next_position"]
    positions = list(range(end, end + len(answer)))
    explained["segments"].append({"new": True, "token_ids": answer, "position_ids": positions})
    sequence, included = build_sequence(explained)
    count = len(sequence.token_ids)
    mask = torch.full((count, count), torch.finfo(torch.float32).min)
    for index, seen in enumerate(sequence.sees):
        mask[index, seen] = 0
    output = model(
        input_ids=torch.tensor([sequence.token_ids]),
        position_ids=torch.tensor([sequence.position_ids]),
        attention_mask=mask[None, None],
    )
    return torch.log_softmax(output.logits[0, included[-len(answer) - 1 :]].float(), -1)


def test_rows_against_the_oracle(
    engine: QualityEngine, maker: PromptMaker, tiny_model: Path, tmp_path: Path
) -> None:
    model = load_reference_model(tiny_model)
    ways = read_ways(WAYS)
    rows, firsts = Rows(tmp_path / "rows.jsonl"), FirstTokens(tmp_path / "first.jsonl")
    Quality(engine, maker, ways, rows, firsts, Measurement(max_tokens=4)).run(QUESTIONS)
    found = {(row["way"], row["id"]): row for row in rows.rows}
    assert len(found) == len(rows.rows) == len(ways) * len(QUESTIONS)
    for question in QUESTIONS:
        answer = maker.answer_token_ids(question)
        full = expected_logprobs(model, maker.make(question, Way(FULL)).plan, answer)
        for way in ways:
            prompt = maker.make(question, way)
            expected = expected_logprobs(model, prompt.plan, answer)
            row = found[way.name, question.id]
            nll = -sum(float(expected[i, token]) for i, token in enumerate(answer)) / len(answer)
            assert row["nll"] == pytest.approx(nll, abs=MAX_ERROR), (way, question.id)
            kl = float((full[0].exp() * (full[0] - expected[0])).sum())
            coarse = divergence(Distribution.of(full[0].numpy(), 1024), expected[0].numpy())
            assert row["kl"] == pytest.approx(coarse, abs=MAX_ERROR), (way, question.id)
            assert coarse <= kl + 1e-6
            if not way.parts:
                assert row["recomputed"] == (row["in_modules"] if way.is_full else 0)
            else:
                assert 0 < row["recomputed"] <= row["in_modules"]
        # All has been seen by all, and the schema's text behind the passages is computed anew: full prefill.
        assert found["scaffold+tail", question.id]["kl"] < 1e-5
        # So many link tokens that every unit is computed anew: full prefill.
        everything = found["context+link:500", question.id]
        assert everything["recomputed"] < everything["in_modules"]  # but for what stands first
        assert everything["kl"] < 1e-5
        assert everything["nll"] == pytest.approx(found[FULL, question.id]["nll"], abs=MAX_ERROR)


def test_a_run_goes_on_where_it_stopped(engine: QualityEngine, maker: PromptMaker, tmp_path: Path) -> None:
    def run(ways: str, count: int) -> dict[tuple[str, str], float]:
        rows, firsts = Rows(tmp_path / "rows.jsonl"), FirstTokens(tmp_path / "first.jsonl")
        Quality(engine, maker, read_ways(ways), rows, firsts, Measurement(4, chunk=1)).run(QUESTIONS[:count])
        return {(row["way"], row["id"]): row["kl"] for row in Rows(tmp_path / "rows.jsonl").rows}

    assert len(run("full,context", 1)) == 2
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"way": "cut o')
    assert len(run("full,context", 2)) == 4
    # Full prefill's first tokens are lost: they are measured again, its rows are not doubled.
    before = (tmp_path / "first.jsonl").read_text().splitlines()
    (tmp_path / "first.jsonl").unlink()
    rows = run("isolated", 2)
    assert len(rows) == 6 == len((tmp_path / "rows.jsonl").read_text().splitlines())
    assert all(rows["isolated", q] > 0 for q in "ab")
    after = (tmp_path / "first.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in before] == [json.loads(line)["id"] for line in after]


def test_times(engine: QualityEngine, maker: PromptMaker) -> None:
    from benchmarks.quality.engine import Ask

    ask = Ask("t", maker.make(QUESTIONS[0], Way.read("context+link:8")), max_tokens=1)
    assert 0 < engine.time_to_first_token(ask) < math.inf
