"""Measures on prompts of your own what modules' isolation does, and what repairs and schemas would help."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_promptcache.advise.advisor import Advisor
from vllm_promptcache.advise.case import Case, plan_over
from vllm_promptcache.advise.questions import Question, read_questions
from vllm_promptcache.advise.report import write_report
from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.frontend.documents import load_schema_files
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.pml.nodes import SchemaNode

if TYPE_CHECKING:
    from vllm_promptcache.offline import LLM

HELP = "measure what isolation does to your prompts, and what helps"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument("--model", required=True, help="a model's folder or name")
    parser.add_argument(
        "--schema",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file or folder of schemas (may be given again; not needed where prompts bring their own)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="a document with a prompt, a .jsonl file with a request's body a line, or a folder of them"
        " (may be given again)",
    )
    parser.add_argument("--max-model-len", type=int, metavar="N", help="positions, if not all of the model's")
    parser.add_argument("--dtype", default="auto", help="run in this data type (default: the model's)")
    parser.add_argument(
        "--engine-args",
        type=json.loads,
        default={},
        metavar="JSON",
        help="more arguments of vLLM's LLM class",
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Prints the advice for each schema that prompts are over; progress goes to stderr."""
    paths = tuple(str(path) for path in arguments.schema)
    schemas = dict(_named(load_schema_files(paths, PromptCacheConfig())))
    questions = read_questions(arguments.prompts)
    if not questions:
        raise Failure("there is no prompt in what --prompts names")
    # What vLLM says must not stand between what this command says.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm_promptcache.offline import LLM

    llm = LLM(
        arguments.model,
        prompt_cache={"schemas": list(paths)},
        max_logprobs=-1,
        max_model_len=arguments.max_model_len,
        dtype=arguments.dtype,
        **arguments.engine_args,
    )
    try:
        found = _advise(llm, schemas, questions)
    except RefusedError as error:
        raise Failure(str(error)) from error
    finally:
        llm.llm_engine.engine_core.shutdown()
    if arguments.json:
        print(json.dumps([advice.to_json() for advice in found]))
    else:
        print("\n\n\n".join(write_report(advice) for advice in found))
    return 0


def _advise(llm: LLM, schemas: dict[str, SchemaNode], questions: Sequence[Question]) -> list[Any]:
    progress = Progress()
    advisor = Advisor(llm, llm.build_layout, llm.prompt_cache_stats()["block_size"], progress.tell)
    cases: dict[str, tuple[SchemaNode, Any, list[Case]]] = {}
    for question in questions:
        composed = llm.compose(question.pml, question.messages, prompt=question.prompt, repair="none")
        assert composed.entry is not None, "a prompt in PML is over a schema"
        layout = composed.entry.layout
        schema = question.schemas.get(layout.name) or schemas[layout.name]
        found = cases.setdefault(layout.digest, (schema, layout, []))
        turns = None if question.messages is None else llm.read_turns(question.messages)
        over = partial(plan_over, node=question.node, turns=turns, text=question.prompt)
        found[2].append(Case(composed.plan, over))
    return [advisor.advise(*one) for one in cases.values()]


def _named(schemas: Sequence[tuple[str, SchemaNode]]) -> list[tuple[str, SchemaNode]]:
    return [(schema.name, schema) for _, schema in schemas]


class Progress:
    """A line to stderr now and then."""

    def __init__(self) -> None:
        self._started = self._told = time.monotonic()
        self._done = self._known = 0

    def tell(self, done: int, known: int) -> None:
        """So many more prompts were asked, and so many more are known to be asked."""
        self._done += done
        self._known += known
        now = time.monotonic()
        if not done or (now - self._told < 5 and self._done < self._known):
            return
        self._told = now
        left = (now - self._started) / self._done * (self._known - self._done)
        print(f"{self._done} of {self._known} prompts asked, {left:.0f} s left", file=sys.stderr, flush=True)
