"""A client that reorders passages so that prompts begin alike: ContextPilot (Jiang et al., MLSys 2026)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from benchmarks.speed.passages import Found


class Reordering:
    """Orders the passages of each question by those asked about before, as the PyPI package does it.

    What it knows of the server's cache is what it has sent; nothing tells it of evictions.
    """

    def __init__(self) -> None:
        from contextpilot import ContextPilot

        with contextlib.redirect_stdout(io.StringIO()):
            self._pilot = ContextPilot(use_gpu=False)

    def reorder(self, asked: Sequence[Found]) -> list[Found]:
        """The same questions over the same passages, each question's in the order that suits its prefix."""
        reordered = []
        for found in asked:
            with contextlib.redirect_stdout(io.StringIO()):  # which it fills with what it does
                ((passages,), _) = self._pilot.reorder(list(found.passages))
            reordered.append(Found(found.question, tuple(passages)))
        return reordered
