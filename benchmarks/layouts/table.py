"""The layouts: agents with tools, chats, templates, retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """What a schema holds, what a prompt includes, and what the request says besides. The schema is called
    `s`."""

    name: str
    schema: str
    prompt: str
    messages: Sequence[dict[str, Any]] = ()
    tools: list[dict[str, Any]] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def _text(subject: str, num_sentences: int) -> str:
    return " ".join(
        f"Of {subject} it is known that part {i} was seen on day {i * 7 % 31} of the month, gate {i % 9}."
        for i in range(num_sentences)
    )


def _module(name: str, num_sentences: int = 14, attributes: str = "") -> str:
    return f'<module name="{name}"{attributes}>{_text(name, num_sentences)}\n</module>'


def _said(*pairs: str) -> list[dict[str, Any]]:
    return [dict(zip(("role", "content"), pair.split(" ", 1), strict=True)) for pair in pairs]


def _tool(name: str) -> dict[str, Any]:
    text = _text(name, 4)
    properties = {"day": {"type": "string", "description": text}}
    function = {"name": name, "description": text, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


_DOCS = "".join(_module(name) for name in ("otters", "boats", "lamps", "maps", "wells", "kites"))
_SYSTEM = f"<system>{_text('the desk', 12)}</system>"
_HOLDING = f"<system>Answer from these notes.\n{_DOCS}</system>"
_ASKED = f"{_SYSTEM}<user>Documents:\n{_DOCS}</user>"
_LONG = f"user {_text('questions', 60)} Which gate?"
_TURNS = (f"user {_text('visitors', 10)} Who came?", "assistant Nobody came on that day.")
_TOOLS = [_tool(name) for name in ("find", "count", "order", "close")]
_FORM = (
    '<module name="form">Write to <parameter name="who" length="8"/> about'
    f' <parameter name="what" length="12"/>. {_text("forms", 20)}\n</module>'
)
_OPEN = '<system>Rules.<module name="rules">' + _text("rules", 20) + "</module></system>"
_COUNTED = _said("user Count.", "assistant I count.", f"user Result: {_text('counts', 20)}")
_WITH_TOOLS = f'<system>Rules.<tools length="1100"/>{_module("rules", 20)}</system>'

LAYOUTS = [
    Layout("RAG: notes in the system message", _HOLDING, "<otters/><maps/>", _said("user Which gate?")),
    Layout(
        "RAG: all notes", _HOLDING, "<otters/><boats/><lamps/><maps/><wells/><kites/>", _said("user Which?")
    ),
    Layout("RAG: six small notes, a long question", _HOLDING, "<otters/><wells/>", _said(_LONG)),
    Layout("RAG: documents and question in one user's turn", _ASKED, "<boats/><kites/>\nWhich gate?"),
    Layout("RAG: the question in messages", _ASKED, "<boats/><kites/>", _said("user Which gate?")),
    Layout("RAG: earlier turns", _ASKED, "<boats/><kites/>", _said(*_TURNS, "user Which gate?")),
    Layout(
        "RAG: a message that includes its documents", _SYSTEM + _DOCS, "<user>Use <maps/> Which gate?</user>"
    ),
    Layout("RAG: documents in no message", _SYSTEM + _DOCS, "<maps/><wells/>", _said("user Which gate?")),
    Layout(
        "RAG: in sequence",
        _HOLDING,
        "<otters/><boats/><maps/>",
        _said("user Which?"),
        None,
        {"encode": "sequence"},
    ),
    Layout("RAG: isolated", _HOLDING, "<otters/><maps/>", _said("user Which?"), None, {"encode": "isolated"}),
    Layout("chat: a first turn", _OPEN, "<rules/>", _said("user May I?")),
    Layout("chat: a second turn", _OPEN, "<rules/>", _said(*_TURNS, "user May I?")),
    Layout("chat: many turns", _OPEN, "<rules/>", _said(*(_TURNS * 4), "user May I?")),
    Layout("chat: no roles in the schema", _text("rules", 12) + _DOCS, "<lamps/>", _said("user Which?")),
    Layout(
        "chat: a system message of the request", _OPEN, "<rules/>", _said("system Be brief.", "user May I?")
    ),
    Layout("agent: tools", _OPEN, "<rules/>", _said("user Count."), _TOOLS),
    Layout("agent: tools and no rules", _OPEN, "", _said("user Count."), _TOOLS),
    Layout(
        "agent: a result of a tool",
        _OPEN,
        "<rules/>",
        _COUNTED,
        _TOOLS,
    ),
    Layout("agent: tools are a module", _WITH_TOOLS, "<rules/>", _said("user Count."), _TOOLS),
    Layout(
        "agent: tools are a module, a later turn",
        _WITH_TOOLS,
        "<rules/>",
        _COUNTED,
        _TOOLS,
    ),
    Layout("template: arguments", f"<user>{_FORM}</user>", "<form who='Ann' what='the gate'/>"),
    Layout("template: a union", f"{_SYSTEM}<user><union>{_DOCS}</union></user>", "<boats/> Say it again."),
    Layout(
        "template: a part that is computed",
        "<system>" + _DOCS + _module("today", 6, ' cache="false"') + "</system>",
        "<otters/><today/>",
        _said("user Which?"),
    ),
    Layout(
        "template: words behind modules",
        f"<system>{_DOCS}{_text('endings', 10)}</system>",
        "<maps/>",
        _said("user Go."),
    ),
    Layout(
        "template: an example",
        f"{_SYSTEM}<user>{_text('examples', 10)}</user><assistant>Gate 4.</assistant><user>{_DOCS}</user>",
        "<wells/> And here?",
    ),
    Layout("template: text only", _SYSTEM, "", _said("user Which?")),
]
