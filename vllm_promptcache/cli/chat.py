"""The messages and tools of a chat request, from files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.plan.conversation import Turns


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """`--messages` and `--tools`."""
    what = "as in a chat request's {0}: a JSON file with a list, or with a request's body that has {0}"
    parser.add_argument("--messages", type=Path, metavar="FILE", help=what.format("messages"))
    parser.add_argument("--tools", type=Path, metavar="FILE", help=what.format("tools"))


def read_chat(arguments: argparse.Namespace) -> Turns | None:
    """The turns of a chat request, or None where nothing says that it is one. Raises Failure."""
    if arguments.messages is None and arguments.tools is None:
        return None
    messages = [] if arguments.messages is None else _list_of(arguments.messages, "messages")
    tools = [] if arguments.tools is None else _list_of(arguments.tools, "tools")
    conversation = [_with_text(message, arguments.messages, i) for i, message in enumerate(messages)]
    return Turns(conversation, tools=tools or None)


def _list_of(path: Path, name: str) -> list[Any]:
    """Raises Failure."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {str(path)!r}: {error}") from error
    if isinstance(found, dict):
        found = found.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Failure(f"{str(path)!r} holds no list of {name}")
    return found


def _with_text(message: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """The message with its text parts as one text, as vLLM joins them. Raises Failure."""
    if not isinstance(message.get("role"), str):
        raise Failure(f"{str(path)!r}: messages[{number}] has no role")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise Failure(f"{str(path)!r}: messages[{number}] holds more than text")
    return {**message, "content": "\n".join(map(str, texts))}
