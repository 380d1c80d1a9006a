"""What would be looked up for a prompt, and where."""

from __future__ import annotations

from typing import Any

from tests.frontend.support import BLOCK_SIZE, FrontEnd, schema
from vllm_promptcache.frontend.composer import Turns
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.options import PromptOptions

TRAVEL = schema("travel", sea="by the sea. " * 9, snow="in the snow. " * 9)


def lookup(front_end: FrontEnd, prompt: str, text: str = "", **options: Any) -> dict[str, Any]:
    composing = front_end.composer.compose_texts(prompt, PromptOptions.of(**options), [text])
    return run_sync(front_end.composer.lookup(run_sync(composing)[0].plan))


def test_units_are_where_the_engine_has_them() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    prompt = "<prompt schema='travel'><snow/></prompt>"
    assert lookup(front_end, prompt)["units"] == {"travel": "absent", "travel/snow": "absent"}
    run_sync(front_end.registry.pin("travel", ["snow"]))
    units = lookup(front_end, prompt)["units"]
    assert units["travel/snow"] in ("encoding", "resident")
    assert lookup(front_end, prompt, reuse=False)["units"] == {}


def test_blocks_are_those_of_new_text_and_of_what_fills_no_block() -> None:
    front_end = FrontEnd()
    front_end.register(TRAVEL)
    found = lookup(front_end, "<prompt schema='travel'><sea/></prompt>", "x" * 100)
    # Of 6 and 108 reused tokens, 6 and 12 fill no block; the last token is computed in any case.
    private = (6 + 108 % BLOCK_SIZE + 100 - 1) // BLOCK_SIZE
    assert found["block_size"] == BLOCK_SIZE
    assert found["plain_prefix"] == {"blocks": 0, "tokens": 0}
    assert found["private"] == {"blocks": private, "tokens": private * BLOCK_SIZE}
    full = lookup(front_end, "<prompt schema='travel'><sea/></prompt>", "x" * 100, reuse=False)
    assert full["plain_prefix"]["tokens"] + full["private"]["tokens"] > 90


def test_what_stands_before_the_first_module_is_a_plain_prefix() -> None:
    front_end = FrontEnd()
    front_end.register("<schema name='s'><user><module name='a'>Grass is green.</module></user></schema>")
    turns = Turns(
        [
            {"role": "user", "content": "Hi " * 20},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Which?"},
        ]
    )
    composing = front_end.composer.compose_chat("<prompt schema='s'><a/></prompt>", PromptOptions(), turns)
    found = run_sync(front_end.composer.lookup(run_sync(composing).plan))
    assert found["plain_prefix"]["blocks"] >= 4
