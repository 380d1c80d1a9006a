"""Quality's questions, ways, metrics, intervals, rows and summaries."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks.quality.bootstrap import interval, paired
from benchmarks.quality.cli import main
from benchmarks.quality.metrics import (
    Distribution,
    containment,
    divergence,
    exact_match,
    f1,
    first_line,
    normalize,
)
from benchmarks.quality.prompts import PLACES, PromptMaker
from benchmarks.quality.questions import (
    REPORT,
    TUNE,
    Passage,
    Question,
    chunks,
    in_order,
    read_questions,
    read_span,
    select,
    shuffled,
)
from benchmarks.quality.rows import FirstTokens, Rows
from benchmarks.quality.summary import panels, summarize, tables
from benchmarks.quality.ways import DEFAULT_WAYS, Way, read_ways
from vllm_promptcache.contract.plan import CachedSegment, NewSegment
from vllm_promptcache.contract.repair import Repair
from vllm_promptcache.layout.encoder import TextEncoder


def question(name: str, passages: str = "one", **changes: Any) -> Question:
    given = {"question": "Why?", "answers": ("so",)} | changes
    return Question(name, (Passage("", passages), Passage("T", "two")), **given)


class TestQuestions:
    def test_reading(self, tmp_path: Path) -> None:
        path = tmp_path / "set.jsonl"
        row = {"id": 1, "contexts": [{"text": "x"}, {"title": "T", "text": "y"}], "question": "q"}
        path.write_text(json.dumps({**row, "answers": ["a", 1947]}) + "\n\n", encoding="utf-8")
        (found,) = read_questions(path)
        passages = (Passage("", "x"), Passage("T", "y"))
        assert found == shuffled(Question("1", passages, "q", ("a", "1947")))
        assert (set(found.passages), found.filed) == (set(passages), passages)

    def test_passages_are_shuffled_with_a_seed_of_each_question(self, tmp_path: Path) -> None:
        """Files have the first questions of a set answered in its first passage."""
        path = tmp_path / "set.jsonl"
        contexts = [{"text": f"passage {i}"} for i in range(5)]
        rows = [{"id": f"q{i}", "contexts": contexts, "question": "?", "answers": ["a"]} for i in range(200)]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        asked = read_questions(path)
        assert asked == read_questions(path)
        places = Counter(q.passages.index(Passage("", "passage 0")) for q in asked)
        assert set(places) == set(range(5)) and max(places.values()) < 60
        # Still one set of passages: of one part, asked one after another.
        assert len({(q.passages_digest, q.part) for q in asked}) == 1
        assert len({q.passages for q in asked}) > 50

    @pytest.mark.parametrize("line", ["", "{}", "nonsense", '{"id": 1, "contexts": [], "answers": ["a"]}'])
    def test_refused(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "set.jsonl"
        path.write_text(line)
        with pytest.raises(ValueError, match="question"):
            read_questions(path)

    def test_parts_keep_passages_together(self) -> None:
        asked = [question(f"{i}", f"passage {i // 5}") for i in range(1000)]
        parts = {p: select(asked, p) for p in (TUNE, REPORT)}
        assert sum(map(len, parts.values())) == 1000
        assert min(map(len, parts.values())) > 400
        tune, report = ({q.passages_digest for q in parts[p]} for p in (TUNE, REPORT))
        assert not tune & report
        # For good: measurements rest on it.
        assert (question("a", "passage 1").part, question("b", "passage 2").part) == (TUNE, TUNE)

    def test_order_takes_sets_of_passages_in_turn(self) -> None:
        asked = [question(f"{p}{i}", p) for p in "abc" for i in range(5 if p == "b" else 2)]
        assert [q.id for q in in_order(asked, run=2)] == [
            "a0",
            "a1",
            "b0",
            "b1",
            "c0",
            "c1",
            "b2",
            "b3",
            "b4",
        ]
        assert [q.id for q in select(asked, None, (2, 4))] == ["b0", "b1"]
        assert [len(c) for c in chunks(asked, 4)] == [4, 4, 1]

    def test_spans(self) -> None:
        assert [read_span(text) for text in ("5", "0:5", ":5", "3:4")] == [(0, 5), (0, 5), (0, 5), (3, 4)]
        for wrong in ("", "5:", "5:5", "x", "-3"):
            with pytest.raises(ValueError):
                read_span(wrong)


class TestWays:
    def test_names(self) -> None:
        for name in DEFAULT_WAYS.split(","):
            assert Way.read(name).name == name
        way = Way.read("isolated+link:16")
        assert (way.base.name, way.repair, way.is_full) == ("isolated", Repair.parse("link:16"), False)
        assert Way.read("context+tail+link:8").family == Way.read("context+tail").family == "context+tail"
        assert [w.name for w in read_ways("context, context,full")] == ["full", "context"]

    @pytest.mark.parametrize(
        "name",
        ["no", "context+no:1", "context+link:x", "context+link:-1", "context+tail:3", "full+link:1"],
    )
    def test_refused(self, name: str) -> None:
        with pytest.raises(ValueError):
            Way.read(name)


class TestPrompts:
    def test_tails_are_new(self, embedded_model: Path) -> None:
        maker = PromptMaker(TextEncoder(AutoTokenizer.from_pretrained(embedded_model)), 4096)
        plan, tailed, linked, both = (
            maker.make(question("a"), Way.read(name)).plan
            for name in ("context", "context+tail", "context+link:2", "context+link:2+tail")
        )
        kinds = [isinstance(s, NewSegment) for s in tailed.segments]
        # The schema's text, two modules, the words that end the system message, the question's message.
        assert kinds[:4] == [False, False, False, True]
        assert tailed.segments[:3] == plan.segments[:3]
        tail = plan.segments[3]
        assert isinstance(tail, CachedSegment)
        assert tail.start == tail.end - 2
        assert tailed.segments[3].token_ids == tail.unit.token_list[tail.start :]
        assert linked.num_new_tokens + 2 == both.num_new_tokens == tailed.num_new_tokens + 2

    @pytest.mark.parametrize("place", PLACES)
    def test_all_ways_are_the_same_tokens_at_the_same_positions(
        self, embedded_model: Path, place: str
    ) -> None:
        maker = PromptMaker(TextEncoder(AutoTokenizer.from_pretrained(embedded_model)), 4096, place)
        asked = question("a", "A < B & <b>so on</b>\n\n  and\ton", question="What is <it> & why?")
        prompts = {way.name: maker.make(asked, way) for way in read_ways("isolated,context+link:3,scaffold")}
        full = prompts["full"].token_ids
        assert all(prompt.token_ids == full for prompt in prompts.values())
        text = maker.encoder._tokenizer.decode(full)  # type: ignore[attr-defined]
        assert "A < B & <b>so on</b>\n\n  and\ton\n\nT\ntwo\n\n" in text
        assert text.endswith("What is <it> & why?<|im_end|>\n<|im_start|>assistant\n")
        assert prompts["full"].num_recomputed == prompts["full"].num_in_modules
        assert prompts["isolated"].num_recomputed == 0
        # The first passage has seen all before it, but for the words of the turn that it is in there.
        assert prompts["context+link:3"].num_recomputed == (6 if place == "between" else 3)
        assert len(prompts["scaffold"].plan.units) == 2
        assert len(prompts["full"].extra_args()["prompt_cache"]["items"]) == 3


class TestMetrics:
    def test_normalizing(self) -> None:
        assert normalize(" The  quick, brown FOX's\ta an. ") == "quick brown foxs"

    @pytest.mark.parametrize(
        ("answer", "golds", "expected"),
        [
            ("The Eiffel Tower", ["Eiffel tower"], (1, 1, 1)),
            ("in Paris, France", ["Paris", "Rome"], (0.5, 0, 1)),
            ("parish", ["Paris"], (0, 0, 0)),
            ("", ["x"], (0, 0, 0)),
            ("the", ["a"], (1, 1, 1)),
            ("b a b", ["b b c"], (0.8, 0, 0)),
        ],
    )
    def test_answers(self, answer: str, golds: list[str], expected: tuple[float, float, float]) -> None:
        found = f1(answer, golds), exact_match(answer, golds), containment(answer, golds)
        assert found == pytest.approx(expected)

    def test_first_line(self) -> None:
        assert first_line("\n  Paris. \nIt is") == "Paris."

    def test_divergence(self) -> None:
        rng = np.random.default_rng(1)
        p, q = (rng.normal(0, 3, 500).astype(np.float32) for _ in range(2))
        p, q = (x - np.logaddexp.reduce(x) for x in (p, q))
        exact = float(np.sum(np.exp(p) * (p - q)))
        assert divergence(Distribution.of(p, 500), q) == pytest.approx(exact, rel=1e-4)
        found = [divergence(Distribution.of(p, n), q) for n in (1, 10, 100, 400)]
        assert found == sorted(found)
        assert found[-1] == pytest.approx(exact, rel=1e-2)
        assert divergence(Distribution.of(p, 10), p) == pytest.approx(0, abs=1e-6)


class TestBootstrap:
    def test_interval_of_a_mean(self) -> None:
        values = np.random.default_rng(2).normal(3, 2, 400)
        found = interval(values)
        error = 1.96 * values.std() / 20
        assert found.mean == pytest.approx(values.mean())
        assert found.low == pytest.approx(values.mean() - error, abs=0.02)
        assert found.high == pytest.approx(values.mean() + error, abs=0.02)
        assert found == interval(values)
        assert found.text(1, 10, sign=True).startswith(f"{values.mean() * 10:+.1f} (+")

    def test_pairs(self) -> None:
        a = {str(i): float(i) + 1 for i in range(10)}
        b = {str(i): float(i) for i in range(5, 20)}
        found = paired(a, b)
        assert found is not None
        assert (found.mean, found.low, found.high, found.count) == (1, 1, 1, 5)
        assert paired(a, {}) is None
        with pytest.raises(ValueError):
            interval(np.array([]))


def test_first_tokens_are_kept(tmp_path: Path) -> None:
    logprobs = np.log(np.random.default_rng(3).dirichlet(np.ones(50))).astype(np.float32)
    given = Distribution.of(logprobs, 8)
    FirstTokens(tmp_path / "first.jsonl")["q"] = given
    found = FirstTokens(tmp_path / "first.jsonl")["q"]
    assert (found.token_ids == given.token_ids).all()
    assert (found.logprobs == given.logprobs).all()
    assert found.rest == given.rest
    assert np.exp(found.logprobs).sum() + np.exp(found.rest) == pytest.approx(1)


def _row(way: str, name: str, value: float) -> dict[str, Any]:
    metrics = dict.fromkeys(("f1", "exact", "contains", "nll", "kl"), value)
    return {"way": way, "id": name, "recomputed": 10, "in_modules": 100, **metrics}


def test_summary() -> None:
    rows = [_row("full", i, 0.5) for i in "abcd"] + [_row("context+link:8", i, 0.25) for i in "abcx"]
    times = [
        {"way": way, "id": "a", "turn": turn, "ms": ms + turn, "new": 1}
        for way, ms in (("full", 100), ("context", 10), ("context+link:8", 20))
        for turn in range(3)
    ]
    summary = summarize(rows, times, "abcd")
    assert summary["full"]["questions"] == summary["context+link:8"]["questions"] == 3
    assert summary["full"]["recomputed_share"] == 1
    assert summary["context+link:8"]["recomputed_share"] == pytest.approx(0.1)
    assert summary["context+link:8"]["f1_against_full"]["mean"] == -0.25
    assert summary["context+link:8"]["ttft_ratio_to_base"]["median"] == pytest.approx(21 / 11)
    quality, against = tables(summary)
    assert "| 50.0" in quality.to_markdown()
    assert "-25.0 (-25.0 to -25.0)" in against.to_markdown()
    assert [series.name for series in panels(summary)[0].series] == ["context"]
    assert summarize(rows, times, "e") == {}


def test_report_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "set.jsonl", tmp_path / "out"
    row = {"id": "a", "contexts": [{"text": "x"}], "question": "q", "answers": ["a"]}
    data.write_text(json.dumps(row), encoding="utf-8")
    arguments = ["--data", str(data), "--out", str(out), "--ways", "context", "--only-report"]
    assert main(arguments) == 0
    assert "no question is answered" in capsys.readouterr().err
    Rows(out / "rows.jsonl").append([_row(way, "a", 0.5) for way in ("full", "context")])
    noted = {"settings": {"data": "set.jsonl", "model": "m"}}
    (out / "run.json").write_text(json.dumps(noted), encoding="utf-8")
    assert main(arguments) == 0
    assert "| context" in capsys.readouterr().out
    assert json.loads((out / "all.json").read_text())["ways"]["context"]["f1"]["mean"] == 0.5
    with pytest.raises(SystemExit):
        main([*arguments, "--split", "no"])
