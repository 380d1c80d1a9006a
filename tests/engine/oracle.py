"""The oracle's answers, computed once a session for each plan and model."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tests.reference import greedy, load_reference_model
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import Plan

Answer = tuple[list[int], torch.Tensor]


class Oracle:
    """Greedy tokens and log-probabilities by definition, from what `explain` prints."""

    def __init__(self) -> None:
        self._models: dict[Path, Any] = {}
        self._answers: dict[tuple[Path, str, int], Answer] = {}

    def __call__(self, model: Path, plan: Plan | dict[str, Any], num_tokens: int) -> Answer:
        explained = plan_to_json(plan) if isinstance(plan, Plan) else plan
        digest = sha256(json.dumps(explained).encode()).hexdigest()
        key = (model, digest, num_tokens)
        if key not in self._answers:
            if model not in self._models:
                self._models[model] = load_reference_model(model)
            self._answers[key] = greedy(self._models[model], explained, num_tokens)
        return self._answers[key]
