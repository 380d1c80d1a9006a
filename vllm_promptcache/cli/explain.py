"""Shows what a prompt reuses and what it computes, without running the model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from vllm_promptcache.cli.chat import add_chat_arguments, read_chat
from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.cli.model_files import add_model_arguments, load_model_files
from vllm_promptcache.cli.picture import draw_plan
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import AUTO, Repair
from vllm_promptcache.errors import ChatTemplateError, IssueList
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.plan.build import build_chat, build_plan
from vllm_promptcache.plan.conversation import Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.nodes import PromptNode
from vllm_promptcache.pml.parser import load_schema_file
from vllm_promptcache.repairs.repaired import repaired

HELP = "show what a prompt reuses and what it computes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    add_model_arguments(parser, required=True)
    parser.add_argument(
        "--schema",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a document with the schema (may be given again; not needed where the prompt's document has it)",
    )
    parser.add_argument(
        "--prompt", type=Path, required=True, metavar="FILE", help="a document with the prompt"
    )
    add_chat_arguments(parser)
    parser.add_argument(
        "--repair",
        type=read_repair,
        default=AUTO,
        metavar="REPAIR",
        help="what is computed anew: auto (default), none, full, link:K, tail, close, link:K+tail, ...",
    )
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Prints a picture of the plan, or the plan as JSON."""
    documents = [load_schema_file(path) for path in [*arguments.schema, arguments.prompt]]
    prompt = documents[-1].prompt
    if prompt is None:
        raise Failure(f"there is no prompt in {str(arguments.prompt)!r}")
    turns = read_chat(arguments)
    files = load_model_files(arguments)
    schemas = {schema.name: schema for document in documents for schema in document.schemas}
    # All of them, so that a misspelt name can be told from the known ones.
    layouts = {
        name: build_layout(schema, files.encoder, files.max_model_len) for name, schema in schemas.items()
    }
    layout = find_layout(prompt, layouts)
    plan = repaired(_plan(layout, prompt, turns), arguments.repair)
    if arguments.json:
        print(json.dumps(plan_to_json(plan)))
        return 0
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(draw_plan(plan, layout, files.tokenizer, unicode=unicode))
    return 0


def _plan(layout: SchemaLayout, prompt: PromptNode, turns: Turns | None) -> Plan:
    """As `/v1/completions` has it, or over chat. Raises Failure where the template refuses the chat."""
    if turns is None:
        return build_plan(layout, prompt)
    try:
        return build_chat(layout, resolve_prompt(layout, prompt, IssueList()), turns)
    except ChatTemplateError as error:
        raise Failure(str(error)) from error


def read_repair(text: str) -> Repair:
    """A repair that is given on the command line."""
    try:
        return Repair.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
