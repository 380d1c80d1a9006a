"""The user's prompts, read from files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_promptcache.errors import PMLError, PMLIssue
from vllm_promptcache.pml.files import find_schema_files
from vllm_promptcache.pml.nodes import PromptNode, SchemaNode
from vllm_promptcache.pml.parser import load_schema_file, parse_document

JSON_LINES = ".jsonl"


@dataclass(frozen=True)
class Question:
    """One prompt in PML and what follows it: ``messages`` of a chat, or else the text ``prompt``.

    ``where`` says where it was read; ``schemas`` are those that its own document brings, by name.
    """

    where: str
    pml: str
    node: PromptNode
    schemas: Mapping[str, SchemaNode]
    messages: Sequence[dict[str, Any]] | None = None
    prompt: str = ""


def read_questions(paths: Iterable[Path]) -> list[Question]:
    """The prompts of files and folders, in order.

    A ``.jsonl`` file has a request's body a line, as it is sent to the server: ``pml``, and ``messages`` or
    ``prompt``; other fields say nothing. Any other file is a PML document with a prompt.

    Raises:
        PMLError: with the mistakes of all of them.
    """
    questions: list[Question] = []
    issues: list[PMLIssue] = []
    for path in (file for given in paths for file in _files(given)):
        try:
            questions += _read_lines(path) if path.suffix == JSON_LINES else [_read_document(path)]
        except PMLError as error:
            issues += error.issues
    if issues:
        raise PMLError(issues)
    return questions


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted([*path.glob(f"*{JSON_LINES}"), *find_schema_files(path)])
    return [path]


def _read_document(path: Path) -> Question:
    document = load_schema_file(path)
    if document.prompt is None:
        raise _wrong(str(path), "there is no prompt in the document")
    schemas = {schema.name: schema for schema in document.schemas}
    return Question(str(path), path.read_text(encoding="utf-8"), document.prompt, schemas)


def _read_lines(path: Path) -> list[Question]:
    questions: list[Question] = []
    issues: list[PMLIssue] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(str(path), f"cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                questions.append(_read_body(line, f"{path}:{number}"))
            except PMLError as error:
                issues += error.issues
    if issues:
        raise PMLError(issues)
    return questions


def _read_body(line: str, where: str) -> Question:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise _wrong(where, f"not JSON: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("pml"), str):
        raise _wrong(where, "a line is an object with a prompt in 'pml'")
    messages, prompt = body.get("messages"), body.get("prompt") or ""
    if messages is not None and not (
        isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    ):
        raise _wrong(where, "'messages' must be a list of objects")
    if not isinstance(prompt, str):
        raise _wrong(where, "'prompt' must be a string")
    document = parse_document(body["pml"], where)
    if document.prompt is None:
        raise _wrong(where, "there is no prompt in 'pml'")
    schemas = {schema.name: schema for schema in document.schemas}
    return Question(where, body["pml"], document.prompt, schemas, messages, prompt)


def _wrong(where: str, what: str) -> PMLError:
    return PMLError([PMLIssue(where, 1, 1, "prompts", what)])
