"""PML documents on their way in: parsed, laid out, and remembered when they come again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import PMLError, PMLIssue
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import FORBIDDEN, RefusedError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.pml.files import find_schema_files
from vllm_promptcache.pml.json_form import read_schema_form
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.nodes import Document, PromptNode, SchemaNode
from vllm_promptcache.pml.parser import load_schema_file, parse_document

# Bytes of a document without schemas, and of each element and text of a prompt.
_DOCUMENT = 20_000
_NODE = 450


@dataclass(frozen=True)
class RequestDocument:
    """A document that came with a request: its prompt, and schemas of its own by name."""

    prompt: PromptNode
    entries: Mapping[str, SchemaEntry]

    @cached_property
    def num_bytes(self) -> int:
        """What it holds in memory, or more: its layouts, its prompt and its text."""
        layouts = sum(entry.num_bytes for entry in self.entries.values())
        num_nodes = 0
        pending: list[Any] = [self.prompt]
        while pending:
            node = pending.pop()
            num_nodes += 1 + len(getattr(node, "arguments", ()))
            pending += getattr(node, "children", ())
            pending += getattr(node, "texts", ())
        return _DOCUMENT + layouts + _NODE * num_nodes + 2 * len(self.prompt.place.source.data)


class LayoutBuilder:
    """Lays schemas out for one model. ``limits`` holds for every document."""

    def __init__(self, encoder: TextEncoder, max_model_len: int, config: PromptCacheConfig) -> None:
        self.encoder = encoder
        self.limits = Limits(max_document_bytes=config.max_document_bytes)
        self.max_model_len = max_model_len
        self._min_free_tokens = config.min_free_tokens

    def build(self, schemas: Iterable[SchemaNode], max_placeholders: int | None = None) -> list[SchemaLayout]:
        """All schemas' layouts, with at most so many placeholders together.

        Raises PMLError with the mistakes of all schemas.
        """
        self.encoder.catch_up()
        layouts: list[SchemaLayout] = []
        issues: list[PMLIssue] = []
        num_placeholders = 0
        for schema in schemas:
            try:
                layout = self._build_one(schema)
            except PMLError as error:
                issues += error.issues
                continue
            num_placeholders += layout.num_placeholders
            if max_placeholders is not None and num_placeholders > max_placeholders:
                what = f"the document's schemas have more than {max_placeholders} placeholders"
                raise PMLError([*issues, schema.place.issue(what)])
            layouts.append(layout)
        if issues:
            raise PMLError(issues)
        return layouts

    def schemas_of(self, text: str | bytes | Mapping[str, Any], where: str) -> list[SchemaLayout]:
        """The layouts of a document that is to be registered, or of a schema in the JSON form; at least one.

        Raises:
            PMLError: the document is wrong, or holds a prompt or no schema.
        """
        if isinstance(text, Mapping):
            schemas: Sequence[SchemaNode] = [read_schema_form(text, where, self.limits)]
        else:
            schemas = only_schemas(parse_document(text, where, self.limits), where)
        return self.build(schemas, self.limits.max_placeholders)

    def document_of(self, text: str, *, allow_schemas: bool = True) -> RequestDocument:
        """A request's ``pml`` field.

        Raises:
            PMLError: the document is wrong, or has no prompt.
            RefusedError: it has schemas, and none are allowed (403).
        """
        document = parse_document(text, "pml", self.limits)
        if document.schemas and not allow_schemas:
            raise RefusedError("this server takes no schemas from requests", FORBIDDEN, field="pml")
        if document.prompt is None:
            raise wrong_document("pml", "the document has no prompt")
        layouts = self.build(document.schemas, self.limits.max_placeholders)
        entries = [SchemaEntry(layout, "request") for layout in layouts]
        return RequestDocument(document.prompt, {entry.name: entry for entry in entries})

    def _build_one(self, schema: SchemaNode) -> SchemaLayout:
        min_free = self._min_free_tokens
        return build_layout(schema, self.encoder, self.max_model_len, min_free, self.limits)


def load_schema_files(paths: Iterable[str], config: PromptCacheConfig) -> list[tuple[str, SchemaNode]]:
    """The schemas of files and folders with the files they stand in, in order; nothing is tokenized.

    A folder may hold documents with nothing but a prompt: those are left alone.

    Raises:
        PMLError: with the mistakes of all files, names that are taken twice among them.
    """
    limits = Limits(max_document_bytes=config.max_document_bytes)
    found: list[tuple[str, SchemaNode]] = []
    issues: list[PMLIssue] = []
    files: dict[str, str] = {}
    named = [Path(path).expanduser() for path in paths]
    for path in (file for given in named for file in find_schema_files(given)):
        try:
            document = load_schema_file(path, limits)
            if document.prompt is not None and not document.schemas and path not in named:
                continue
            schemas = only_schemas(document, str(path))
        except PMLError as error:
            issues += error.issues
            continue
        for schema in schemas:
            if schema.name in files:
                what = f"there is another schema {schema.name!r} in {files[schema.name]}"
                issues.append(schema.place.at("name").issue(what))
            files[schema.name] = str(path)
            found.append((str(path), schema))
    if issues:
        raise PMLError(issues)
    return found


def only_schemas(document: Document, where: str) -> tuple[SchemaNode, ...]:
    """A document's schemas. Raises PMLError where it has none, or a prompt."""
    if document.prompt is not None:
        raise PMLError([document.prompt.place.issue("a prompt cannot be registered, only schemas")])
    if not document.schemas:
        raise wrong_document(where, "the document has no schema")
    return document.schemas


def wrong_document(where: str, what: str) -> PMLError:
    """The error for a document as a whole."""
    return PMLError([PMLIssue(where, 1, 1, "pml", what)])
