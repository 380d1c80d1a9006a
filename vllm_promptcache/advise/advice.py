"""What was measured, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Nats: a divergence below this changes next to no answer.
SMALL = 0.01


@dataclass(frozen=True)
class ModuleEffect:
    """What a module's isolation does, over the questions that include it.

    ``causes`` is the divergence that is gone, on average and in nats, when this module alone is computed
    anew in sight of everything before it, which takes ``tokens``.
    """

    module: str
    questions: int
    tokens: int
    causes: float


@dataclass(frozen=True)
class RemedyEffect:
    """What is left with a remedy, and what it costs.

    ``divergence`` from full attention is in nats, the mean over questions; ``changed`` counts those whose
    likeliest first token is another one. ``recomputed`` tokens are computed more in a request, on average;
    ``blocks`` are KV blocks that the schema's units take more.
    """

    name: str
    divergence: float
    changed: int
    recomputed: float
    blocks: int


@dataclass(frozen=True)
class Advice:
    """All about one schema: ``now`` is how it is used, ``modules`` stand worst first."""

    schema: str
    encode: str
    questions: int
    modules: tuple[ModuleEffect, ...]
    now: RemedyEffect
    remedies: tuple[RemedyEffect, ...]

    @property
    def suggestion(self) -> RemedyEffect | None:
        """The remedy to take; None where nothing has to be done, or nothing helps.

        Of those that take at least half of the divergence away, the one that computes fewest tokens in a
        request and takes fewest blocks.
        """
        helping = [r for r in self.remedies if r.divergence <= self.now.divergence / 2]
        if self.now.divergence < SMALL or not helping:
            return None
        return min(helping, key=lambda r: (r.recomputed, r.blocks, r.divergence))

    def to_json(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {**asdict(self), "suggestion": self.suggestion.name if self.suggestion else None}
