"""LongBench's files: contexts become passages, questions have their tasks' words, answers their metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.quality.longbench import MOST_WORDS_A_PIECE, TASKS, qa_f1, retrieval, rouge_l
from benchmarks.quality.prompts import PromptMaker
from benchmarks.quality.questions import Question, read_questions
from benchmarks.quality.summary import summarize, tables
from benchmarks.quality.ways import Way
from vllm_promptcache.layout.encoder import TextEncoder

PASSAGES = "Passage 1:\nThe tower\nIt is old.\nPassage 2:\nThe river\nIt is wide.\n\nPassage 3:\nThe end\n"


def read(tmp_path: Path, dataset: str, context: str, **fields: Any) -> Question:
    row = {
        "_id": "7",
        "dataset": dataset,
        "context": context,
        "input": "How old?",
        "answers": ["Old"],
    } | fields
    path = tmp_path / f"{dataset}.jsonl"
    path.write_text(json.dumps(row | {"length": 9, "language": "en", "all_classes": None}), encoding="utf-8")
    (question,) = read_questions(path)
    return question


def test_the_eight_data_sets_are_known() -> None:
    assert sorted(TASKS) == sorted(
        [
            *("narrativeqa", "2wikimqa", "musique", "triviaqa"),
            *("gov_report", "qmsum", "multi_news", "passage_retrieval_en"),
        ]
    )


@pytest.mark.parametrize("dataset", ["2wikimqa", "musique", "multi_news", "2wikimqa_e"])
def test_passages_are_modules_in_an_order_of_the_question(tmp_path: Path, dataset: str) -> None:
    question = read(tmp_path, dataset, PASSAGES)
    assert [p.text for p in question.filed] == ["The tower\nIt is old.", "The river\nIt is wide.", "The end"]
    assert set(question.passages) == set(question.filed)


def test_paragraphs_keep_their_numbers(tmp_path: Path) -> None:
    context = "Paragraph 1: The tower.\n\nParagraph 2: The river."
    question = read(tmp_path, "passage_retrieval_en", context, answers=["Paragraph 2"])
    assert [(p.title, p.text) for p in question.filed] == [
        ("Paragraph 1", "The tower."),
        ("Paragraph 2", "The river."),
    ]
    assert "How old?" in question.question and question.task is TASKS["passage_retrieval_en"]


def test_examples_are_passages_and_the_last_one_is_asked(tmp_path: Path) -> None:
    example = "Passage:\nIt is old.\nQuestion:\nHow old?\nAnswer:\nold\n"
    question = read(tmp_path, "triviaqa", example * 3, input="Passage:\nx\nQuestion:\ny\nAnswer:")
    assert [p.text for p in question.passages] == [example.strip()] * 3
    assert question.question.endswith("Answer:")


@pytest.mark.parametrize("dataset", ["narrativeqa", "gov_report", "qmsum"])
def test_one_text_is_cut_and_stays_in_order(tmp_path: Path, dataset: str) -> None:
    lines = [" ".join(f"w{n}-{i}" for i in range(90)) for n in range(20)]
    question = read(tmp_path, dataset, "\n".join([*lines, "x " * 2000]))
    texts = [p.text for p in question.passages]
    assert not question.filed
    assert " ".join(texts).split() == " ".join([*lines, "x " * 2000]).split()
    assert max(len(text.split()) for text in texts) <= MOST_WORDS_A_PIECE
    assert len(texts) > 5


def test_other_data_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset 'lcc' is none of narrativeqa"):
        read(tmp_path, "lcc", "x")


def test_metrics_are_longbench_s() -> None:
    assert qa_f1("the old tower", "old tower") == 1
    assert rouge_l("the cat sat", "the cat sat") == pytest.approx(1)
    assert rouge_l("the cat sat down", "the cat ran away") == pytest.approx(0.5)
    assert rouge_l("…", "the cat") == rouge_l("", "the cat") == 0
    assert retrieval("Paragraph 3", "Paragraph 3") == 1
    assert retrieval("3 or 4", "Paragraph 3") == 0.5
    assert retrieval("none", "Paragraph 3") == retrieval("33", "Paragraph 3") == 0


def test_tasks_have_their_own_words_and_what_does_not_fit_is_told(
    tmp_path: Path, embedded_model: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    encoder = TextEncoder(tokenizer)
    question = read(tmp_path, "qmsum", "A: Well.\nB: Yes.")
    prompt = PromptMaker(encoder, 4096).make(question, Way.read("context"))
    text = tokenizer.decode(prompt.token_ids)
    assert "You are given a meeting transcript" in text and "Query: How old?" in text
    assert PromptMaker(encoder, 4096).fits(question)
    assert not PromptMaker(encoder, 512).fits(question)
    assert not PromptMaker(encoder, 40).fits(question)


def test_the_score_is_a_column_where_there_is_one() -> None:
    row = {"id": "a", "f1": 0.1, "exact": 0, "contains": 0, "nll": 1.0, "kl": 0.0, "recomputed": 1}
    rows = [row | {"way": way, "in_modules": 2, "score": 0.5} for way in ("full", "context")]
    (quality, _) = tables(summarize(rows, [], ["a"]))
    assert quality.columns[2] == "score" and quality.rows[0][2] == "50.0"
    for one in rows:
        del one["score"]
    assert "score" not in tables(summarize(rows, [], ["a"]))[0].columns
