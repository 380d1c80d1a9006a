"""The paper's three use cases, as they stand in examples/paper: several source files, traits, a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.ask import Ask
from benchmarks.harness.text import TextSource
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import load_schema_file

EXAMPLES = Path(__file__).parents[2] / "examples" / "paper"
USES = {
    "code": "several source files",
    "traits": "personalization by traits",
    "plan": "a plan with parameters",
}
# The ways that a use case is asked in: its modules stand in one order.
USE_WAYS = ("full", "prefix", "warm", "alone", "cold")
NEW = 16


@dataclass(frozen=True)
class UseCase:
    """A schema and a prompt over it, each in PML, and the prompt's tokens as anybody would send them.

    ``module_tokens`` are those of each segment that is reused.
    """

    name: str
    schema: str
    prompt: str
    token_ids: tuple[int, ...]
    module_tokens: tuple[int, ...]

    @classmethod
    def read(cls, name: str, tokenizer: Any, max_model_len: int) -> UseCase:
        """The use case of a name, by its two files."""
        files = EXAMPLES / f"{name}.pml", EXAMPLES / f"{name}-prompt.pml"
        (schema,) = load_schema_file(files[0]).schemas
        prompt = load_schema_file(files[1]).prompt
        assert prompt is not None, f"{files[1]} holds no prompt"
        plan = build_plan(build_layout(schema, TextEncoder(tokenizer), max_model_len), prompt)
        reused = tuple(s.num_tokens for s in plan.segments if isinstance(s, CachedSegment))
        token_ids, _ = plain_tokens(plan)
        texts = (file.read_text(encoding="utf-8") for file in files)
        return cls(name, *texts, tuple(token_ids.tolist()), reused)

    def asks(self, way: str, source: TextSource, new_salt: Any) -> Iterator[Ask]:
        """Requests of a way, without end, each with new text of its own behind the prompt."""
        while True:
            text = source.take(NEW)
            new = source.token_ids(text)
            salt = {"cache_salt": new_salt()} if way in ("full", "cold") else {}
            if way in ("warm", "cold"):
                yield Ask(text, len(self.token_ids) + NEW, body={"pml": self.prompt, **salt})
            else:
                prompt = new if way == "alone" else [*self.token_ids, *new]
                yield Ask(prompt, len(prompt), body=salt)
