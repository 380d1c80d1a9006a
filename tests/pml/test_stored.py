"""Schemas as plain data and back."""

import json

import pytest

from tests.cases import CASES
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.stored import schema_from_plain, to_plain

WITH_TOOLS = "<schema name='s'><system>S<tools length='9'/></system></schema>"


@pytest.mark.parametrize("schema", sorted({WITH_TOOLS, *(case.schema for case in CASES)}))
def test_a_schema_comes_back_as_it_was(schema: str) -> None:
    for node in parse_document(schema, "pml").schemas:
        assert schema_from_plain(json.loads(json.dumps(to_plain(node))), "stored") == node


@pytest.mark.parametrize(
    "data", [None, [], {}, {"node": "SchemaNode"}, {"node": "Place"}, {"node": "TextNode", "text": ""}]
)
def test_what_is_no_schema_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="stored holds no schema"):
        schema_from_plain(data, "stored")
