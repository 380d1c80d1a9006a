"""Usage: what requests found of what they reuse, counted since the start."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vllm_promptcache.engine.composed_request import ComposedRequest


@dataclass
class Usage:
    """Counts over all composed requests that clients have sent.

    Attributes:
        requests: those whose first output was made.
        hits: modules that were resident when they were asked for, or that another request had asked for.
        loads: modules that were loaded from records for a request.
        misses: modules that were encoded for one.
        tokens_saved: tokens of prompts that were not computed.
    """

    requests: int = 0
    hits: int = 0
    loads: int = 0
    misses: int = 0
    tokens_saved: int = 0

    def count(self, composed: ComposedRequest) -> dict[str, int]:
        """Count a request, with its first output; returns what is reported of it."""
        report = composed.report
        self.requests += 1
        self.hits += report["modules_resident"]
        self.loads += report["modules_loaded"]
        self.misses += report["modules_encoded"]
        self.tokens_saved += report["tokens_reused"] + report["tokens_found"]
        return report

    def stats(self) -> dict[str, int]:
        """Counts for people."""
        return asdict(self)
