"""The place that a schema has for the tools of requests (PML page, "Tools")."""

from __future__ import annotations

from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import ChatTemplateError
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.parts import ToolsLayout, unit_of
from vllm_promptcache.pml.nodes import SchemaNode, ToolsNode


def lay_out_tools(node: ToolsNode, schema: SchemaNode, encoder: TextEncoder) -> ToolsLayout:
    """The layout of a place for tools.

    Tools see the words that begin a conversation, which are the same for all schemas, and nothing of this
    schema: so the same tools are one unit behind any system message. With `encode="isolated"` they see
    nothing.
    """
    context: tuple[Unit, ...] = ()
    if schema.encode != "isolated" and (token_ids := _opening(encoder)):
        context = (unit_of(f"{schema.name}:opening", token_ids, 0, ()),)
    return ToolsLayout(f"{schema.name}:tools", node.length or 0, context)


def _opening(encoder: TextEncoder) -> list[int]:
    """The tokens with which a conversation begins; none for a model without a chat template."""
    try:
        words = encoder.template.beginning()
        bos = encoder.template_bos
    except ChatTemplateError:
        return []
    return [*([] if bos is None else [bos]), *encoder.encode(words)]
