"""PML text to its syntax tree: the first stage of everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_promptcache.errors import TOO_LARGE, IssueList, PMLError, quote, unknown
from vllm_promptcache.pml.attributes import Attributes
from vllm_promptcache.pml.files import JSON_SUFFIX, read_source
from vllm_promptcache.pml.json_form import read_schema_form
from vllm_promptcache.pml.limits import DEFAULT_LIMITS, Limits
from vllm_promptcache.pml.names import check_names
from vllm_promptcache.pml.nodes import Document, PromptNode, SchemaNode
from vllm_promptcache.pml.prompt_parser import PromptParser
from vllm_promptcache.pml.reader import Element, read_element
from vllm_promptcache.pml.schema_parser import SchemaParser
from vllm_promptcache.pml.source import Source
from vllm_promptcache.pml.space import DEFAULT_SPACE, is_white


def parse_document(text: str | bytes, where: str = "pml", limits: Limits = DEFAULT_LIMITS) -> Document:
    """Parses a document that arrived in a request: `src` is refused.

    `where` is the file or field that errors name. Raises PMLError with every mistake found; its
    `status` is 413 for a document larger than `limits.max_document_bytes`, else 400.
    """
    return _parse(Source(where, _to_bytes(text, where, limits)), limits, None)


def load_schema_file(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Document:
    """Parses a document on disk; `src` paths are read from the file's own folder. A `*.json` file holds a
    schema in the JSON form.

    Raises PMLError as `parse_document` does, also where a file cannot be read.
    """
    path = Path(path)
    source = read_source(path, limits)
    if path.suffix == JSON_SUFFIX:
        return Document((read_schema_form(_json(source), source.where, limits),), None)
    return _parse(source, limits, path.parent)


def _json(source: Source) -> Any:
    try:
        return json.loads(source.data)
    except json.JSONDecodeError as error:
        offset = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise PMLError([source.issue(f"not JSON: {error.msg}", offset)]) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise PMLError([source.issue(f"not JSON: {error}")]) from None


def _to_bytes(text: str | bytes, where: str, limits: Limits) -> bytes:
    if isinstance(text, bytes):
        return text
    if len(text) > limits.max_document_bytes:
        what = f"the document is larger than the {limits.max_document_bytes} bytes that are allowed"
        raise PMLError([Source(where, b"").issue(what)], TOO_LARGE)
    try:
        return text.encode()
    except UnicodeEncodeError:
        what = "the document is not Unicode text: it has a lone surrogate"
        raise PMLError([Source(where, b"").issue(what)]) from None


def _parse(source: Source, limits: Limits, folder: Path | None) -> Document:
    issues = IssueList()
    root = read_element(source, limits)
    document = _document(root, issues, SchemaParser(issues, limits, folder))
    for schema in document.schemas:
        check_names(schema, issues, limits)
    issues.raise_if_any()
    return document


def _document(root: Element, issues: IssueList, schemas: SchemaParser) -> Document:
    if root.tag == "prompt":
        return Document((), PromptParser(issues).prompt(root))
    if root.tag == "schema":
        return Document((schemas.schema(root),), None)
    if root.tag == "pml":
        return _pml(root, issues, schemas)
    what = f"a document is a 'pml', 'schema' or 'prompt' element, not {quote(root.tag)}"
    raise PMLError([root.place.issue(what)])


def _pml(root: Element, issues: IssueList, parser: SchemaParser) -> Document:
    space = Attributes(root, issues, ("space",)).space(DEFAULT_SPACE)
    schemas: dict[str, SchemaNode] = {}
    prompt: PromptNode | None = None
    for child in root.children:
        if not isinstance(child, Element):
            if not all(is_white(text) for text, _ in child.parts):
                issues.add(child.place.issue("text cannot stand in 'pml'"))
        elif child.tag == "schema":
            schema = parser.schema(child, space)
            if schema.name in schemas and schema.name:
                issues.add(child.place.at("name").issue(f"there is another schema {quote(schema.name)}"))
            schemas[schema.name] = schema
        elif child.tag == "prompt":
            if prompt is not None:
                issues.add(child.place.issue("a document has at most one prompt"))
            prompt = PromptParser(issues).prompt(child, space)
        else:
            issues.add(child.place.issue(unknown("element", child.tag, ("schema", "prompt"))))
    return Document(tuple(schemas.values()), prompt)
