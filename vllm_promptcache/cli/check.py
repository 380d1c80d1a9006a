"""Checks PML documents: syntax and names and, with --model, that everything fits."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_promptcache.cli.model_files import add_model_arguments, load_model_files
from vllm_promptcache.errors import IssueList, PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.notes import notes_on
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.files import find_schema_files
from vllm_promptcache.pml.limits import DEFAULT_LIMITS
from vllm_promptcache.pml.nodes import Document, SchemaNode
from vllm_promptcache.pml.parser import load_schema_file

HELP = "check PML documents"

# Without a model nothing is refused for its length.
_ANY_LENGTH = 10**12
_SCHEMA_NAME = re.compile(rb"<schema\s[^<>]*?\bname\s*=\s*(?:\"([^\"<>]*)\"|'([^'<>]*)')")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a document, or a folder of them")
    add_model_arguments(parser, required=False)


def run(arguments: argparse.Namespace) -> int:
    """Prints a line a good document, and notes on it, to stdout, and all mistakes of the others to stderr."""
    encoder, max_model_len = TextEncoder(_NoTokens()), _ANY_LENGTH
    if arguments.model:
        files = load_model_files(arguments)
        encoder, max_model_len = files.encoder, files.max_model_len
    checker = _Checker(encoder, max_model_len, measures=bool(arguments.model))
    paths = [path for given in arguments.files for path in find_schema_files(given)]
    documents = {path: document for path in paths if (document := checker.load(path))}
    for path, document in documents.items():
        checker.check_prompt(path, document)
    for path, document in documents.items():
        if path not in checker.bad:
            print(f"{path}: {checker.describe(document)}")
            for note in checker.notes(document):
                print(f"{path}: note: {note}")
    return 1 if checker.bad else 0


class _Checker:
    def __init__(self, encoder: TextEncoder, max_model_len: int, measures: bool) -> None:
        self._encoder = encoder
        self._max_model_len = max_model_len
        self._measures = measures
        self._layouts: dict[str, SchemaLayout] = {}
        # Schemas with mistakes of their own: a prompt over one is not wrong for that.
        self._wrong_schemas: set[str] = set()
        self.bad: set[Path] = set()

    def load(self, path: Path) -> Document | None:
        """Parses a document and lays its schemas out; None where it cannot be parsed."""
        try:
            document = load_schema_file(path)
        except PMLError as error:
            self._report(path, error)
            self._wrong_schemas.update(_schemas_named_in(path))
            return None
        for schema in document.schemas:
            try:
                self._lay_out(schema)
            except PMLError as error:
                self._report(path, error)
                self._wrong_schemas.add(schema.name)
        return document

    def check_prompt(self, path: Path, document: Document) -> None:
        """Checks a document's prompt against the schemas of all documents, if there are any."""
        if document.prompt is None or not self._layouts:
            return
        name = document.prompt.schema
        if name in self._wrong_schemas and name not in self._layouts:
            return
        try:
            layout = find_layout(document.prompt, self._layouts)
            if self._measures:
                build_plan(layout, document.prompt)
            else:
                issues = IssueList()
                resolve_prompt(layout, document.prompt, issues)
                issues.raise_if_any()
        except PMLError as error:
            self._report(path, error)

    def notes(self, document: Document) -> list[str]:
        """What may be unexpected of a good document; known with a model only."""
        if not self._measures:
            return []
        layouts = [self._layouts[schema.name] for schema in document.schemas]
        return [f"schema {layout.name}: {note}" for layout in layouts for note in notes_on(layout)]

    def describe(self, document: Document) -> str:
        """What a good document holds, in a few words."""
        parts = [self._describe_schema(self._layouts[schema.name]) for schema in document.schemas]
        if document.prompt is not None:
            known = document.prompt.schema in self._layouts
            parts.append(
                f"prompt over {document.prompt.schema}{'' if known else ' (not checked against it)'}"
            )
        return "; ".join(parts) or "empty"

    def _describe_schema(self, layout: SchemaLayout) -> str:
        number = sum(len(m.pool.members) if m.pool else 1 for m in layout.modules[1:])
        text = f"schema {layout.name}, {number} module{'' if number == 1 else 's'}"
        if layout.pools:
            text += f", {len(layout.pools)} pool{'' if len(layout.pools) == 1 else 's'}"
        if layout.tools is not None:
            text += ", a place for tools"
        return f"{text}, {layout.num_positions} positions" if self._measures else text

    def _lay_out(self, schema: SchemaNode) -> None:
        if schema.name in self._layouts:
            issue = schema.place.at("name").issue(f"another document has a schema {schema.name!r}")
            raise PMLError([issue])
        self._layouts[schema.name] = build_layout(schema, self._encoder, self._max_model_len)

    def _report(self, path: Path, error: PMLError) -> None:
        self.bad.add(path)
        print(error, file=sys.stderr)


def _schemas_named_in(path: Path) -> list[str]:
    """The names of schemas in a document that cannot be parsed."""
    with contextlib.suppress(OSError):
        found = _SCHEMA_NAME.findall(path.read_bytes()[: DEFAULT_LIMITS.max_document_bytes])
        return [(double or single).decode("utf-8", "replace") for double, single in found]
    return []


class _NoTokens:
    """Stands for a tokenizer where only names are checked: no text has a token, every role is known."""

    bos_token = bos_token_id = eos_token_id = None
    unk_token, unk_token_id = "<unk>", 0
    chat_template = "any"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return []

    def decode(self, token_ids: Sequence[int]) -> str:
        return ""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], *, tokenize: bool = True, **options: Any
    ) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in conversation)
