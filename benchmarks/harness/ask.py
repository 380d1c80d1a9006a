"""One request, and which of vLLM's APIs it is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Ask:
    """One request: a prompt (text, token IDs or chat messages), what comes with it, tokens to answer."""

    prompt: str | list[int] | list[dict[str, Any]]
    num_prompt_tokens: int
    num_answer_tokens: int = 1
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The API it is for."""
        is_chat = isinstance(self.prompt, list) and (not self.prompt or isinstance(self.prompt[0], dict))
        return CHAT if is_chat else COMPLETIONS

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the body beside the prompt: greedy, as many tokens as asked for, and its own."""
        return {"temperature": 0.0, "ignore_eos": True, **self.body}
