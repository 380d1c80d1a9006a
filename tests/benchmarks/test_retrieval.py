"""Retrieval: passages, questions and their rankings, reordering, requests, and the result's tables."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from benchmarks.speed.passages import FEWEST, MOST, Found, Library, rank
from benchmarks.speed.reordering import Reordering
from benchmarks.speed.retrieval import Questions
from benchmarks.speed.retrieval_report import WAYS, cached_share, figures, panels, tables, winner

needs_contextpilot = pytest.mark.skipif(
    find_spec("contextpilot") is None, reason="pip install 'vllm-promptcache[reorder]'"
)
SUBJECTS = ("tower", "river", "market", "winter", "garden", "music", "harbour", "forest", "letter", "horse")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, part in enumerate((SUBJECTS[:6], SUBJECTS[4:])):
        contexts = [{"title": "", "text": f"The {s} of the town is old and the {s} is large."} for s in part]
        rows = [{"contexts": contexts, "question": f"How old is the {s}?", "answers": ["old"]} for s in part]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def test_a_library_holds_each_passage_and_question_once(folder: Path) -> None:
    library = Library.read(folder)
    assert (len(library.passages), len(library.questions)) == (len(SUBJECTS), len(SUBJECTS))
    assert library.source == "0.jsonl, 1.jsonl"
    with pytest.raises(ValueError, match="passages and a question"):
        Library.read(folder / "0.jsonl")


def test_passages_are_drawn_with_a_seed_and_stay_in_order() -> None:
    whole, drawn = Library.read(None), Library.read(None, 50, seed=1)
    places = [whole.passages.index(passage) for passage in drawn.passages]
    assert len(places) == 50 and places == sorted(set(places))
    assert drawn == Library.read(None, 50, seed=1) != Library.read(None, 50, seed=2)
    assert drawn.questions == whole.questions
    assert Library.read(None, len(whole.passages) + 1) == whole


def test_installed_packages_are_a_library_too() -> None:
    library = Library.read(None)
    assert len(library.passages) > 100 and len(library.questions) > 50


def test_questions_find_their_passages_best_first(folder: Path) -> None:
    library = Library.read(folder)
    for found in library.find(len(SUBJECTS), seed=1):
        subject = found.question.split()[-1].rstrip("?")
        assert subject in found.passages[0]
        assert FEWEST <= len(found.passages) <= MOST
    assert library.find(9, seed=1) == library.find(9, seed=1)
    assert rank(["a cat sits", "a dog runs"], ["the dog"], 2)[0][0] == 1


@needs_contextpilot
def test_reordering_keeps_passages_and_shares_beginnings() -> None:
    asked = [Found(f"{n}?", tuple(f"passage {(n * 3 + i) % 8}" for i in range(5))) for n in range(8)]
    reordered = Reordering().reorder(asked)
    assert [set(one.passages) for one in reordered] == [set(one.passages) for one in asked]
    assert [one.question for one in reordered] == [one.question for one in asked]

    def shared(found: list[Found]) -> int:
        seen: set[tuple[str, ...]] = set()
        count = 0
        for one in found:
            beginnings = [one.passages[:end] for end in range(1, 6)]
            count += sum(beginning in seen for beginning in beginnings)
            seen |= set(beginnings)
        return count

    assert shared(reordered) > shared(asked)


@needs_contextpilot
def test_all_ways_ask_the_same_text_and_one_marks_it(folder: Path, embedded_model: Path) -> None:
    questions = Questions(Library.read(folder), AutoTokenizer.from_pretrained(embedded_model), 8, seed=0)
    found = questions.take("new", 4)
    assert found[0] != questions.take("new", 1)[0]
    asked = {way: [ask.prompt[0]["content"] for ask in questions.asks(way, found)] for way in WAYS}  # type: ignore[index]
    texts = {way: [[part["text"] for part in parts] for parts in asked[way]] for way in WAYS}
    assert texts["off"] == texts["on"] == texts["marks"]
    assert [sorted(parts) for parts in texts["reordered"]] == [sorted(parts) for parts in texts["on"]]
    marked = [["cache_control" in part for part in parts] for parts in asked["marks"]]
    assert all(all(parts[:-1]) and not parts[-1] for parts in marked)
    assert not any("cache_control" in part for parts in asked["on"] for part in parts)
    popular = questions.take("popular", 200)
    assert len({one.question for one in popular}) < 200


def test_tables_say_which_way_wins() -> None:
    def samples(rate: float, cached: int) -> list[dict[str, Any]]:
        return [
            {"place": [n, 0], "requests_per_s": rate, "ttfts_ms": [9.0], "cached": cached, "tokens": 100}
            for n in range(2)
        ]

    rates = {"off": (1.0, 0), "on": (1.5, 10), "reordered": (4.0, 60), "marks": (3.0, 90)}
    cell = {
        "load": "new",
        "concurrency": 8,
        "samples": {way: samples(*given) for way, given in rates.items()},
        "memory_bytes": dict.fromkeys(WAYS, 2**30),
    }
    seen = {"load": "seen", "concurrency": 32, "memory_bytes": {"on": 3 * 2**30, "marks": 2**30}}
    seen["samples"] = {"on": samples(1.0, 10), "marks": samples(9.0, 90)}
    known = {"source": "here", "passages": 10, "questions": 10, "warm_up": 4, "sent_s": 12.3}
    known |= {"kv_gib": 2.0, "host_gib": 1.5, "disk_gib": 0.0}
    known |= {"compared": 8, "same_tokens": 8, "tokens_compared": {"on": 80, "reordered": 80, "marks": 80}}
    result = {"cells": {"new:8": cell, "seen:32": seen}, "passages": known}
    assert winner(cell) == WAYS["reordered"]
    assert cached_share([cell], "marks") == 0.9 and cached_share([cell], "off") == 0
    assert cached_share([seen], "reordered") == 0 and winner(seen) == WAYS["marks"]
    made = tables(result)
    assert made[0].rows[0][-1] == WAYS["reordered"]
    assert "8 prompts 8 are the same" in made[0].note and "took 12 s" in made[0].note
    assert "2 GiB, and that of the marked passages 1.5 GiB of memory and 0 GiB" in made[0].note
    assert made[1].rows[1] == (*made[0].rows[1][:2], "–", "9, 9", "–", "9, 9")
    assert "90%" in made[2].rows[0] and made[3].rows[0] == ("1.00", "3.00", "1.00", "1.00")
    assert made[4].rows == (("each question once", "8", "1.33 (1.33 to 1.33)"),)
    assert [figure.is_reached for figure in figures(result)] == [True, False, True]
    assert [len(panel.series) for panel in panels(result)] == [4, 2]
