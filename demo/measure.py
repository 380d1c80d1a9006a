"""Times to first token: composed, without reuse, and as plain prompts for vLLM's prefix cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from uuid import uuid4

from demo.client import Answer, Answering, Client
from demo.orders import PlainPrompt, new_orders
from demo.output import width
from demo.table import render_legend, render_table, seconds, times

# Slow machines end after fewer rounds, but not after fewer than this.
MIN_ROUNDS = 3
MAX_SECONDS = 40


@dataclass
class Timings:
    """The answers to one prompt by each way of asking, round by round."""

    prompt: str
    reuse: list[Answer] = field(default_factory=list)
    no_reuse: list[Answer] = field(default_factory=list)
    other_order: list[Answer] = field(default_factory=list)
    same_order: list[Answer] = field(default_factory=list)

    @property
    def num_rounds(self) -> int:
        """Rounds that were measured."""
        return len(self.reuse)


@dataclass(frozen=True)
class Ways:
    """How a prompt is asked each way, by the number of the round."""

    reuse: Callable[[int], Answering]
    no_reuse: Callable[[int], Answering]
    other_order: Callable[[int], Answering]
    same_order: Callable[[int], Answering]


def measure(
    client: Client,
    prompt: str,
    pml: str,
    questions: Sequence[str],
    rounds: int,
    report: Callable[[str], None],
) -> Timings:
    """Asks one prompt in every way, another of `questions` each round.

    The plain prompt's first order is asked once before, so that vLLM's prefix cache knows it; every other
    order is asked once.
    """
    plain = [PlainPrompt.from_plan(client.explain(pml, question)) for question in questions]
    first = range(len(plain[0].modules))
    orders = new_orders(len(first), rounds) or [tuple(first)]
    client.complete(plain[0].in_order(first), max_tokens=1).finish()

    def composed(index: int, reuse: bool, salt: str | None = None) -> Answering:
        return client.chat(pml, questions[index % len(questions)], max_tokens=1, reuse=reuse, salt=salt)

    def in_order(index: int, order: Sequence[int]) -> Answering:
        return client.complete(plain[index % len(questions)].in_order(order), max_tokens=1)

    ways = Ways(
        lambda index: composed(index, reuse=True),
        lambda index: composed(index, reuse=False, salt=uuid4().hex),
        lambda index: in_order(index, orders[index % len(orders)]),
        lambda index: in_order(index, first),
    )
    return _in_turns(prompt, ways, rounds, report)


def measure_passages(
    client: Client,
    prompt: str,
    passages: Sequence[str],
    questions: Sequence[str],
    rounds: int,
    report: Callable[[str], None],
) -> Timings:
    """Asks about passages in every way, in another order and with another of `questions` each round.

    They were asked about once before: marked, and plain in their first order.
    """
    first = range(len(passages))
    orders = new_orders(len(first), rounds) or [tuple(first)]

    def ask(index: int, order: Sequence[int], *, marked: bool, salt: str | None = None) -> Answering:
        chosen = [passages[i] for i in order]
        question = questions[index % len(questions)]
        return client.chat_over(chosen, question, max_tokens=1, marked=marked, salt=salt)

    for marked in (True, False):
        ask(0, first, marked=marked).finish()
    ways = Ways(
        lambda index: ask(index, orders[index % len(orders)], marked=True),
        lambda index: ask(index, orders[index % len(orders)], marked=False, salt=uuid4().hex),
        lambda index: ask(index, orders[index % len(orders)], marked=False),
        lambda index: ask(index, first, marked=False),
    )
    return _in_turns(prompt, ways, rounds, report)


def _in_turns(prompt: str, ways: Ways, rounds: int, report: Callable[[str], None]) -> Timings:
    """All ways one after the other in each round, so that whatever else the machine does hits all alike."""
    timings = Timings(prompt)
    end = time.monotonic() + MAX_SECONDS
    for index in range(rounds):
        if index >= MIN_ROUNDS and time.monotonic() > end:
            report(f"{prompt}: {index} rounds are enough on this machine")
            break
        timings.reuse.append(ways.reuse(index).finish())
        timings.no_reuse.append(ways.no_reuse(index).finish())
        timings.other_order.append(ways.other_order(index).finish())
        timings.same_order.append(ways.same_order(index).finish())
        report(f"{prompt}: round {index + 1} of {rounds}")
    return timings


def render_timings(all_timings: Sequence[Timings]) -> str:
    """The table, and a line on each of its columns."""
    head = (
        "prompt",
        "prompt\ntokens",
        "reused\ntokens",
        "composed,\nreuse",
        "composed,\nno reuse",
        "prefix cache,\nother order",
        "prefix cache,\nsame order",
    )
    rounds = min(timings.num_rounds for timings in all_timings)
    title = f"Time to first token, median of {rounds} rounds in turns:"
    table = render_table(head, [_row(timings) for timings in all_timings])
    return f"{title}\n\n{table}\n\n{render_legend(_legend(all_timings), width())}"


def _legend(all_timings: Sequence[Timings]) -> list[tuple[str, str]]:
    other, same = _found(all_timings, "other_order"), _found(all_timings, "same_order")
    return [
        ("prompt tokens", "all tokens of the prompt, as the server counts them"),
        ("reused tokens", "those that came from cached modules and were not computed"),
        ("reuse", "the prompt in PML; passages are marked, and in a new order each time"),
        ("no reuse", "the same, with nothing in any cache: all of it computed"),
        ("other order", f"plain, in a new order: the prefix cache had {other} tokens"),
        ("same order", f"plain, in an order asked before: the prefix cache had {same} tokens"),
        ("1.0x", "how many times the time with reuse"),
    ]


def _row(timings: Timings) -> list[str]:
    base = _first_token(timings.reuse)
    row = [
        timings.prompt,
        str(round(median(answer.num_prompt_tokens for answer in timings.reuse))),
        str(_num_reused(timings.reuse)),
        seconds(base),
    ]
    for answers in (timings.no_reuse, timings.other_order, timings.same_order):
        value = _first_token(answers)
        row.append(f"{seconds(value)} {times(value / base):>5}")
    return row


def _found(all_timings: Sequence[Timings], way: str) -> str:
    return ", ".join(str(_num_reused(getattr(timings, way))) for timings in all_timings)


def _first_token(answers: Sequence[Answer]) -> float:
    return median(answer.first_token_s for answer in answers)


def _num_reused(answers: Sequence[Answer]) -> int:
    return round(median(answer.num_reused_tokens for answer in answers))
