"""Advice as text: a table of modules, a table of remedies, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_promptcache.advise.advice import SMALL, Advice, RemedyEffect


def write_report(advice: Advice) -> str:
    """Lines of text, without a line feed at the end."""
    modules = [(m.module, str(m.questions), str(m.tokens), f"{m.causes:.4f}") for m in advice.modules]
    remedies = [_remedy(effect, advice.questions) for effect in (advice.now, *advice.remedies)]
    return "\n".join(
        [
            f"schema {advice.schema} (encode={advice.encode}), {_prompts(advice.questions)}",
            "",
            "How far the first token's distribution is from full attention's (KL, in nats), and how much of",
            "that is gone when one module alone is computed anew in sight of all before it:",
            "",
            *_table(("module", "in prompts", "tokens", "KL it causes"), modules),
            "",
            "What is left of it with a repair or another schema, and what that costs:",
            "",
            *_table(("", "KL", "other token in", "tokens anew", "blocks more"), remedies),
            "",
            _conclusion(advice),
        ]
    )


def _remedy(effect: RemedyEffect, questions: int) -> tuple[str, ...]:
    return (
        effect.name,
        f"{effect.divergence:.4f}",
        f"{effect.changed} of {questions}",
        f"{effect.recomputed:.0f}",
        f"{effect.blocks:+d}" if effect.blocks else "0",
    )


def _conclusion(advice: Advice) -> str:
    if advice.now.divergence < SMALL:
        return f"Nothing needs to be done: on average, less than {SMALL} nats are at stake."
    best = advice.suggestion
    if best is None:
        return 'Nothing that was tried takes half of it away. Compare answers with "reuse": false.'
    return f"Suggestion: {best.name}. It is the cheapest that takes at least half of the divergence away."


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines; the first column is set to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return [_line(row, widths) for row in (head, rule, *rows)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    others = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join([f"{cells[0]:<{widths[0]}}", *others]).rstrip()
