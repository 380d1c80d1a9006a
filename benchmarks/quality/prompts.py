"""Passages as modules of a schema, questions as new text, and the plans that the ways make of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.quality.questions import LeftOut, Passage, Question
from benchmarks.quality.ways import ENCODINGS, Way
from vllm_promptcache.blocks.wire import EXTRA_ARG, plan_to_wire, prompt_token_ids
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.errors import IssueList, PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_chat
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.repairs.repaired import repaired

INSTRUCTION = (
    "Answer the user's question from the passages below. Give only the answer itself, in as few words as "
    "possible, without a sentence around it.\n\n"
)
# What a chat template writes around a question, at most, and the answer's first tokens.
ROOM_AROUND_QUESTION = 64
# Where the passages stand: inside the system message, inside the schema's user message, or in no message:
# then in the question's, whose words are new text.
PLACES = {
    "system": "<system>{instruction}{passages}</system>",
    "user": "<system>{instruction}</system><user>{passages}</user>",
    "between": "<system>{instruction}</system>{passages}",
}


def schema_pml(
    passages: tuple[Passage, ...],
    left_out: LeftOut,
    encode: str,
    scaffolded: bool,
    place: str = "system",
    instruction: str = INSTRUCTION,
) -> str:
    """The schema with one module for each passage, and one for each that prompts leave out."""
    names = [f"p{i}" for i in range(len(passages))]
    others = {number: _module(f"other{number}", passage) for number, passage in left_out}
    modules = "".join(
        others.get(number, "") + _module(name, passage)
        for number, (name, passage) in enumerate(zip(names, passages, strict=True))
    )
    body = PLACES[place].format(instruction=escape(instruction), passages=modules)
    scaffold = f'<scaffold modules="{" ".join(names)}"/>' if scaffolded else ""
    return f'<schema name="passages" encode="{encode}" space="preserve">{body}{scaffold}</schema>'


def _module(name: str, passage: Passage) -> str:
    return f'<module name="{name}">{escape(passage_text(passage))}</module>'


def passage_text(passage: Passage) -> str:
    """A passage as its module holds it."""
    return f"{passage.title}\n{passage.text}\n\n" if passage.title else f"{passage.text}\n\n"


def prompt_pml(question: Question) -> str:
    """The prompt: all passages, and the question as the user's message."""
    modules = "".join(f"<p{i}/>" for i in range(len(question.passages)))
    text = escape(question.question)
    return f'<prompt schema="passages">{modules}<user space="preserve">{text}</user></prompt>'


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question asked one way, as the engine takes it.

    ``num_recomputed`` counts the tokens that are computed although modules hold them, of
    ``num_in_modules``.
    """

    way: Way
    question: Question
    plan: Plan
    num_recomputed: int
    num_in_modules: int

    @property
    def token_ids(self) -> list[int]:
        """All tokens in position order."""
        return prompt_token_ids(self.plan)

    def extra_args(self) -> dict[str, Any]:
        """What travels in ``SamplingParams.extra_args``."""
        return {EXTRA_ARG: plan_to_wire(self.plan, with_texts=True)}


class PromptMaker:
    """Makes prompts for one model; remembers the schemas used last."""

    def __init__(self, encoder: TextEncoder, max_model_len: int, place: str = "system"):
        self.encoder = encoder
        self._max_model_len = max_model_len
        self._place = place
        self._layout = lru_cache(maxsize=64)(self._build_layout)

    def make(self, question: Question, way: Way) -> Prompt:
        """The prompt of a question asked one way."""
        plan = self.plan(question, way.encoding)
        asked = repaired(plan, way.repair)
        return Prompt(way, question, asked, asked.num_repaired_tokens, plan.num_cached_tokens)

    def layout(self, question: Question, encoding: str) -> SchemaLayout:
        """The layout of a question's passages."""
        instruction = question.task.instruction if question.task else INSTRUCTION
        return self._layout(question.passages, question.left_out, *ENCODINGS[encoding], instruction)

    def fits(self, question: Question) -> bool:
        """Whether a question's passages leave the model room to answer."""
        try:
            layout = self.layout(question, "context")
        except PMLError:
            return False
        asked = len(self.encoder.encode(question.question)) + ROOM_AROUND_QUESTION
        answer = question.task.max_tokens if question.task else 0
        return layout.num_positions + asked + answer <= self._max_model_len

    def plan(self, question: Question, encoding: str) -> Plan:
        """The plan of a question over modules, before anything is repaired."""
        layout = self.layout(question, encoding)
        prompt = parse_document(prompt_pml(question)).prompt
        assert prompt is not None
        resolution = resolve_prompt(layout, prompt, IssueList())
        return build_chat(layout, resolution, Turns())

    def answer_token_ids(self, question: Question) -> list[int]:
        """The gold answer as the model would write it at the start of its message."""
        return self.encoder.encode(question.answers[0])

    def _build_layout(
        self,
        passages: tuple[Passage, ...],
        left_out: LeftOut,
        encode: str,
        scaffolded: bool,
        instruction: str,
    ) -> SchemaLayout:
        text = schema_pml(passages, left_out, encode, scaffolded, self._place, instruction)
        (schema,) = parse_document(text).schemas
        return build_layout(schema, self.encoder, self._max_model_len)
