"""Measuring in turns, with a client that answers at once, and the table that comes of it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from demo import measure as measuring
from demo.client import Answer, Answering
from demo.measure import Timings, measure, measure_passages, render_timings
from tests.demo.test_orders import PLAN


class Said:
    """An answer that is there already."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def finish(self) -> Answer:
        return self._answer


class RecordingClient:
    """Notes what is asked, and says that it took longer where nothing is reused."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def explain(self, pml: str, question: str) -> dict[str, Any]:
        return PLAN

    def chat(self, pml: str, question: str, *, max_tokens: int, reuse: bool, salt: str | None) -> Said:
        assert reuse == (salt is None)
        self.asked.append((question, reuse))
        return Said(Answer("x", 13, 12 if reuse else 0, 0.1 if reuse else 1.0))

    def chat_over(
        self, passages: Sequence[str], question: str, *, max_tokens: int, marked: bool, salt: str | None
    ) -> Said:
        self.asked.append((tuple(passages), question, marked, salt))
        return Said(Answer("x", 13, 12 if marked else 0, 0.1 if marked else 1.0))

    def complete(self, token_ids: Sequence[int], *, max_tokens: int) -> Said:
        self.asked.append(tuple(token_ids))
        return Said(Answer("x", 13, 3, 0.5))


IN_ORDER = (1, 2, 10, 11, 50, 51, 12, 20, 21, 3, 4, 60)
OTHER = (1, 2, 20, 21, 10, 11, 50, 51, 12, 3, 4, 60)


def test_ways_of_asking_take_turns() -> None:
    client, said = RecordingClient(), []
    timings = measure(client, "name", "<prompt/>", ("a?", "b?"), 3, said.append)  # type: ignore[arg-type]
    one_round = [True, False]
    assert client.asked[0] == IN_ORDER
    for index, question in enumerate(("a?", "b?", "a?")):
        asked = client.asked[1 + 4 * index : 5 + 4 * index]
        assert asked == [*((question, reuse) for reuse in one_round), OTHER, IN_ORDER]
    assert timings.num_rounds == 3
    assert said[-1] == "name: round 3 of 3"


def test_passages_are_asked_about_in_another_order_each_round() -> None:
    client = RecordingClient()
    passages, questions = ("a", "b", "c"), ("a?", "b?")
    timings = measure_passages(client, "name", passages, questions, 4, [].append)  # type: ignore[arg-type]
    before, rounds = client.asked[:2], client.asked[2:]
    assert [(order, marked) for order, _, marked, _ in before] == [(passages, True), (passages, False)]
    assert len(rounds) == 4 * timings.num_rounds == 16
    seen = set()
    for index in range(4):
        marked, salted, plain, same = rounds[4 * index : 4 * index + 4]
        assert marked[0] == salted[0] == plain[0] != passages == same[0]
        assert [one[2] for one in (marked, salted, plain, same)] == [True, False, False, False]
        assert [one[3] is None for one in (marked, salted, plain, same)] == [True, False, True, True]
        assert {one[1] for one in (marked, salted, plain, same)} == {questions[index % 2]}
        seen.add(marked[0])
    assert len(seen) == 4 and len({one[3] for one in rounds}) == 5


def test_slow_machines_measure_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MAX_SECONDS", -1)
    said: list[str] = []
    timings = measure(RecordingClient(), "name", "<prompt/>", ("a?",), 9, said.append)  # type: ignore[arg-type]
    assert timings.num_rounds == measuring.MIN_ROUNDS
    assert "enough" in said[-1]


def test_the_table_shows_medians_ratios_and_what_they_mean() -> None:
    def answers(*first_tokens_s: float, reused: int = 0) -> list[Answer]:
        return [Answer("", 400, reused, value) for value in first_tokens_s]

    timings = Timings(
        "travel",
        reuse=answers(0.1, 0.2, 9.0, reused=390),
        no_reuse=answers(2.0, 1.0, 3.0),
        other_order=answers(1.0, 1.0, 1.0, reused=16),
        same_order=answers(0.1, 0.1, 0.1, reused=384),
    )
    shown = render_timings([timings])
    assert max(len(line) for line in shown.splitlines()) <= 80
    (row,) = [line for line in shown.splitlines() if line.startswith("travel")]
    assert row.split() == [
        "travel",
        "400",
        "390",
        "200",
        "ms",
        "2.00",
        "s",
        "10x",
        "1.00",
        "s",
        "5.0x",
        "100",
        "ms",
        "0.5x",
    ]
    assert "median of 3 rounds" in shown
    for words in ("prefix cache had 16", "prefix cache had 384", "all of it computed"):
        assert words in " ".join(shown.split())


def chunk(*parts: str, finish: str | None = None, usage: Any = None) -> Any:
    choices = [SimpleNamespace(delta=SimpleNamespace(content=part), finish_reason=finish) for part in parts]
    return SimpleNamespace(choices=choices, usage=usage)


@pytest.mark.parametrize("details", [None, SimpleNamespace(cached_tokens=7)])
def test_an_answer_is_read_from_its_stream(details: Any) -> None:
    usage = SimpleNamespace(prompt_tokens=9, prompt_tokens_details=details)
    answering = Answering([chunk(""), chunk("a"), chunk("b", finish="stop"), chunk(usage=usage)], 0.0)
    assert list(answering) == ["a", "b"]
    assert answering.answer is not None
    assert answering.answer.text == "ab"
    assert answering.answer.num_reused_tokens == (7 if details else 0)


def test_an_answer_may_be_empty() -> None:
    usage = SimpleNamespace(prompt_tokens=9, prompt_tokens_details=None)
    answer = Answering([chunk(""), chunk("", finish="stop"), chunk(usage=usage)], 0.0).finish()
    assert (answer.text, answer.num_prompt_tokens) == ("", 9)
    assert answer.first_token_s > 0
