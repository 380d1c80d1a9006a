"""Chat templates as real ones are built, by name: those of `tests/templates` and of the byte tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.byte_tokenizer import CHATML, CHATML_TOOLS, HEADERS, INST, NO_SYSTEM, byte_tokenizer

_FOLDER = Path(__file__).parent / "templates"
CHAT_TEMPLATES = {
    "chatml": CHATML,
    "chatml-tools": CHATML_TOOLS,
    "headers": HEADERS,
    "inst": INST,
    "no-system": NO_SYSTEM,
    **{path.stem: path.read_text() for path in sorted(_FOLDER.glob("*.jinja"))},
}


def tokenizer_with(name: str) -> Any:
    """The byte tokenizer with a template."""
    return byte_tokenizer(bos="<s>", chat_template=CHAT_TEMPLATES[name])


def rendered(name: str, conversation: list[dict[str, Any]], **options: Any) -> str:
    """What a template writes for a conversation, generation prompt included."""
    return str(
        tokenizer_with(name).apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **options
        )
    )
