"""Schemas as plain data and back, for keeping them apart from the documents they came in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm_promptcache.pml import nodes
from vllm_promptcache.pml.nodes import SchemaNode
from vllm_promptcache.pml.source import Place, Source

_PLACE = "place"
_KIND = "node"
_NODES = {
    cls.__name__: cls for cls in vars(nodes).values() if isinstance(cls, type) and hasattr(cls, "place")
}


def to_plain(node: Any) -> Any:
    """A node, or what stands in one, in JSON's types: everything but where it stood."""
    if isinstance(node, tuple):
        return [to_plain(child) for child in node]
    if type(node).__name__ not in _NODES:
        return node
    said = {field.name: to_plain(getattr(node, field.name)) for field in fields(node) if field.name != _PLACE}
    return {_KIND: type(node).__name__, **said}


def schema_from_plain(data: Any, where: str) -> SchemaNode:
    """The schema that ``to_plain`` made ``data`` of; ``where`` is what messages about it will call it.

    Raises:
        ValueError: it is no schema.
    """
    try:
        node = _from_plain(data, Place(Source(where, b""), 0, None, ""))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where} holds no schema: {error!r}") from error
    if not isinstance(node, SchemaNode):
        raise ValueError(f"{where} holds no schema")
    return node


def _from_plain(data: Any, place: Place) -> Any:
    if isinstance(data, list):
        return tuple(_from_plain(child, place) for child in data)
    if not isinstance(data, dict):
        return data
    said = {name: _from_plain(value, place) for name, value in data.items() if name != _KIND}
    return _NODES[data[_KIND]](**said, place=place)
