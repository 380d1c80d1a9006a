"""Notes on schemas: what is no mistake, but worth saying."""

from __future__ import annotations

import pytest

from tests.chat_templates import tokenizer_with
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.notes import notes_on
from vllm_promptcache.pml.parser import parse_document

NOTES = {
    "<system>S<module name='a'>A</module></system>": [],
    "S<module name='a'>A</module>": ["it has no roles: over chat it is the system message"],
    "<system>S</system><module name='a'>A</module><module name='b'>B</module>": [
        "'a', 'b' in no message: over chat in the user's turn that follows"
    ],
    "<system>S</system><module name='a'><user>A</user></module>": [],
    f"<system><module name='a'>A</module>{'B' * 300}</system>": [
        "311 tokens of its own text stand behind modules and are computed in each request"
    ],
}


@pytest.mark.parametrize("schema", NOTES)
def test_notes(schema: str) -> None:
    (node,) = parse_document(f"<schema name='s'>{schema}</schema>").schemas
    assert list(notes_on(build_layout(node, tokenizer_with("qwen3"), 4096))) == NOTES[schema]


@pytest.mark.parametrize(("name", "notes"), [("qwen3", 0), ("mistral", 0), ("llama3.1", 0), ("chatml", 1)])
def test_a_template_that_writes_no_tools(name: str, notes: int) -> None:
    (node,) = parse_document("<schema name='s'><system>S<tools/></system></schema>").schemas
    found = list(notes_on(build_layout(node, tokenizer_with(name), 4096)))
    assert found == ["it has a place for tools, and the model's chat template writes none"] * notes


def test_without_a_system_role() -> None:
    (node,) = parse_document("<schema name='s'>S</schema>").schemas
    (note,) = notes_on(build_layout(node, tokenizer_with("gemma"), 4096))
    assert note.endswith("over chat it begins the first user's turn")
