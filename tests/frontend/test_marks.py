"""Marks on parts of chats: where they stand, and the plain prompt's tokens but for seams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import TemplateError
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Sequence_
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.byte_tokenizer import CHATML, CHATML_TOOLS, HEADERS, INST, NO_SYSTEM, byte_tokenizer
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.marks import NO_PINS, Mark, read_marks, with_line_breaks
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.plan.marked import TokenRun, build_marked

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
FIRST, SECOND = " The desk opens at nine.\n", "A late book costs a coin."


def part(text: str, **mark: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **mark}


def conversation(*parts: Any, system: Any = "Be brief.") -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": list(parts)}]


def as_strings(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as vLLM gives them to templates that want text."""
    return [
        {**m, "content": "\n".join(p["text"] for p in m["content"])}
        if not isinstance(m["content"], str)
        else m
        for m in messages
    ]


def found(messages: Sequence[Mapping[str, Any]], prompt: str, **more: Any) -> list[str]:
    spans, _ = read_marks(messages, **more).find(prompt)
    return [prompt[span.start : span.end] for span in spans]


def test_parts_are_found_where_they_stand() -> None:
    messages = conversation(part(FIRST, **EPHEMERAL), part(SECOND, **EPHEMERAL), part("When?"))
    prompt = f"<s>Be brief.</s><u>{FIRST}\n{SECOND}\nWhen?</u>"
    assert found(messages, prompt) == [FIRST, SECOND]
    assert read_marks(messages).find(prompt)[1] == prompt.index(FIRST)
    # A template that trims what it writes.
    assert found(messages, f"Be brief.{FIRST.strip()}\n{SECOND}") == [FIRST.strip(), SECOND]
    # One that leaves a message out.
    assert found(messages, f"<u>{SECOND}\nWhen?</u>") == [SECOND]


def test_text_that_stands_there_twice() -> None:
    """An unmarked part before it takes the first place."""
    messages = conversation(part(SECOND), part("and"), part(SECOND, **EPHEMERAL))
    prompt = f"{SECOND}\nand\n{SECOND}"
    (span,), _ = read_marks(messages).find(prompt)
    assert span.start == len(prompt) - len(SECOND)
    twice = conversation(part(SECOND, **EPHEMERAL), part(SECOND, **EPHEMERAL))
    assert found(twice, f"{SECOND}\n{SECOND}") == [SECOND, SECOND]


def test_what_marks_say() -> None:
    says = {"prompt_cache": {"name": "report 2024.pdf", "ttl": "1h", "pin": True}, **EPHEMERAL}
    (marked,) = read_marks([{"role": "user", "content": [part("x", **says)]}]).messages
    assert marked.mark == Mark("report 2024.pdf", 3600.0, pin=True)
    (whole,) = read_marks([{"role": "user", "content": "x", **EPHEMERAL}]).messages
    assert whole.mark == Mark()
    for ttl, seconds in {"5m": 300.0, 90: 90.0, "1.5h": 5400.0, "7d": 604800.0}.items():
        mark = {"cache_control": {"type": "ephemeral", "ttl": ttl}}
        assert read_marks([{"role": "user", "content": [part("x", **mark)]}]).messages[0].mark == Mark(
            ttl=seconds
        )


@pytest.mark.parametrize(
    "mark",
    [
        {"cache_control": "ephemeral"},
        {"cache_control": {"ttl": "soon"}},
        {"cache_control": {"ttl": True}},
        {"prompt_cache": True},
        {"prompt_cache": {"nmae": "x"}},
        {"prompt_cache": {"name": 7}},
        {"prompt_cache": {"pin": "yes"}},
        {"prompt_cache": {"ttl": -1}},
    ],
    ids=str,
)
def test_marks_that_say_nothing(mark: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="of a part: "):
        read_marks([{"role": "user", "content": [part("x", **mark)]}])


def test_pins_of_marks_where_clients_may_not_pin() -> None:
    asked = conversation(part("x", prompt_cache={"pin": True, "ttl": 5}))
    parts = read_marks(asked, may_pin=False)
    assert parts.problem == NO_PINS
    assert parts.messages[-1].mark == Mark(ttl=5.0)
    assert read_marks(asked).problem is None
    assert read_marks(asked).messages[-1].mark == Mark(ttl=5.0, pin=True)


def test_images_cannot_be_marked() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    assert read_marks(conversation(image, part("x"))).problem is None
    parts = read_marks(conversation({**image, **EPHEMERAL}, part("x", **EPHEMERAL)))
    assert parts.problem == "a part of type 'image_url' cannot be marked, only text"
    assert parts.has_marks


def test_parts_that_are_marked_without_a_mark() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Q"},
        {"role": "tool", "content": SECOND},
        {"role": "tool", "content": [part(FIRST)]},
    ]
    tool = {"type": "function", "function": {"name": "f", "description": "Fährt.", "parameters": {"a": 1}}}
    documents = [{"text": 'say "hi"\n'}]
    prompt = f"Q {SECOND} {FIRST} {json.dumps(tool, ensure_ascii=False)} " + json.dumps(documents)
    assert found(messages, prompt, tools=[tool], documents=documents) == []
    auto = ("tool_messages", "documents", "tools")
    marked = found(messages, prompt, tools=[tool], documents=documents, auto=auto)
    assert marked == [SECOND, FIRST, json.dumps(tool, ensure_ascii=False), 'say \\"hi\\"\\n']
    indented = json.dumps(tool["function"], indent=4, ensure_ascii=False)
    assert found([], f"tools:\n{indented}\n", tools=[tool], auto=auto) == [indented]
    own = [json.dumps(tool["function"])]
    assert found([], json.dumps(tool), tools=[{**tool, **EPHEMERAL}]) == own


def test_searching_ends() -> None:
    """Each search reads all of a prompt, so not many are made in vain."""
    messages = [{"role": "user", "content": [part(f"absent {i}", **EPHEMERAL) for i in range(1000)]}]

    class Counting(str):
        searches = 0

        def find(self, *args: Any) -> int:
            Counting.searches += 1
            return super().find(*args)

    read_marks(messages).find(Counting("text"))
    assert Counting.searches <= 32


TEMPLATES = {
    "chatml": CHATML,
    "tools": CHATML_TOOLS,
    "headers": HEADERS,
    "inst": INST,
    "no-system": NO_SYSTEM,
    **{path.stem: path.read_text() for path in (Path(__file__).parents[1] / "templates").glob("*.jinja")},
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_the_plain_prompt_s(name: str) -> None:
    """A byte has no seam: over every template, tokens and positions are the plain request's."""
    tokenizer = byte_tokenizer(bos="<s>", chat_template=TEMPLATES[name])
    encoder = TextEncoder(tokenizer)
    messages = [
        *([] if name in ("no-system", "gemma") else [{"role": "system", "content": "Be brief."}]),
        {"role": "user", "content": [part(FIRST, **EPHEMERAL), part(SECOND, **EPHEMERAL), part("When?")]},
        {"role": "assistant", "content": "At nine."},
        {"role": "user", "content": [part("And now: "), part(FIRST, **EPHEMERAL)]},
    ]
    try:
        prompt = tokenizer.apply_chat_template(
            as_strings(messages), tokenize=False, add_generation_prompt=True
        )
    except TemplateError:
        pytest.skip("the template cannot be rendered")
    spans, lead = read_marks(messages).find(prompt)
    assert len(spans) == 3
    assert 0 < lead <= spans[0].start
    runs = []
    end = 0
    for index, span in enumerate(spans):
        runs.append(TokenRun(encoder.encode(prompt[end : span.start])))
        runs.append(TokenRun(encoder.encode(prompt[span.start : span.end]), str(index)))
        end = span.end
    runs.append(TokenRun(encoder.encode(prompt[end:])))
    plan = build_marked(runs, encoder.encode(prompt[:lead]))
    ids, positions = plain_tokens(plan)
    assert ids.tolist() == encoder.encode(prompt)
    assert np.array_equal(positions, np.arange(len(ids)))
    reused = [s for s in plan.segments if isinstance(s, CachedSegment)]
    assert [s.num_tokens for s in reused] == [span.end - span.start for span in spans]
    # What two requests share: the same text behind the same beginning.
    other = build_marked(
        [TokenRun(encoder.encode(prompt[:lead] + "?")), runs[1]], encoder.encode(prompt[:lead])
    )
    assert other.units[1].digest == plan.units[1].digest
    assert other.units[0].digest == plan.units[0].digest


def test_the_last_token_is_new() -> None:
    plan = build_marked([TokenRun([1, 2]), TokenRun([3, 4, 5], "a")], [1])
    assert [(type(s) is CachedSegment, s.first_position, s.num_tokens) for s in plan.segments] == [
        (False, 0, 2),
        (True, 2, 2),
        (False, 4, 1),
    ]
    alone = build_marked([TokenRun([3], "a")], [])
    assert alone.units == ()
    assert alone.num_new_tokens == 1


def test_the_same_text_is_one_unit() -> None:
    plan = build_marked([TokenRun([3, 4], "a"), TokenRun([1]), TokenRun([3, 4], "b"), TokenRun([7])], [9])
    assert [unit.id for unit in plan.units] == ["messages:lead", "messages/a"]
    assert [unit.id for unit, _ in plan.placed_units].count("messages/a") == 2


LINES = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Splits as Llama 3's and Qwen's do: a full stop and the line break behind it are one token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence_([Split(Regex(LINES), "isolated"), ByteLevel(False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([f"The desk opens{end}\n{end}\n\n" for end in ".?!" * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML)


def test_the_line_break_between_parts_is_the_part_s() -> None:
    tokenizer = merging_tokenizer()
    assert ".Ċ" in tokenizer.convert_ids_to_tokens(tokenizer.encode("opens.\nThe"))
    messages = conversation(
        part("The desk opens.", **EPHEMERAL),
        part("ends in a line break.\n", **EPHEMERAL),
        part("\nbegins with one", **EPHEMERAL),
        part("The last.", **EPHEMERAL),
        part("When?"),
    )
    prompt = tokenizer.apply_chat_template(as_strings(messages), tokenize=False, add_generation_prompt=True)
    spans = with_line_breaks(prompt, read_marks(messages).find(prompt)[0])
    texts = [prompt[span.start : span.end] for span in spans]
    assert texts == ["The desk opens.\n", "ends in a line break.\n", "\nbegins with one\n", "The last.\n"]
    # Where no part ends in white space, nothing merges: tokens are the plain prompt's.
    simple = conversation(*[part(f"The desk opens{c}", **EPHEMERAL) for c in ".?!"], part("When?"))
    prompt = tokenizer.apply_chat_template(as_strings(simple), tokenize=False, add_generation_prompt=True)
    spans = with_line_breaks(prompt, read_marks(simple).find(prompt)[0])
    bounds = [0, *(edge for span in spans for edge in span[:2]), len(prompt)]
    assert len(spans) == 3 and all(a.end == b.start for a, b in pairwise(spans))
    pieces = [tokenizer.encode(prompt[start:end]) for start, end in pairwise(bounds)]
    assert [token for piece in pieces for token in piece] == tokenizer.encode(prompt)


def test_seams_are_at_the_parts_edges(embedded_model: Path) -> None:
    """With a tokenizer that merges, tokens differ from the plain prompt's next to a part's edge at most."""
    encoder = TextEncoder(AutoTokenizer.from_pretrained(embedded_model))
    texts = [
        "The desk opens at nine.",
        "ends in spaces  ",
        "  begins with them",
        "\n\nlines\n\n",
        "12",
        "34",
        "naïve 日本",
    ]
    messages = conversation(*[part(text, **EPHEMERAL) for text in texts], part("Why?"))
    prompt = encoder.template._renderer.render(as_strings(messages), {"add_generation_prompt": True})
    spans, _ = read_marks(messages).find(prompt)
    assert [prompt[span.start : span.end] for span in spans] == texts
    edges = sorted({edge for span in spans for edge in span[:2]})
    bounds = [0, *edges, len(prompt)]
    pieces = [encoder.encode(prompt[start:end]) for start, end in pairwise(bounds)]
    assert encoder.decode([token for piece in pieces for token in piece]) == prompt
    offsets = encoder._tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    plain = dict(zip(map(tuple, offsets["offset_mapping"]), offsets["input_ids"], strict=True))
    found: dict[tuple[int, int], int] = {}
    for start, piece in zip(bounds, [prompt[a:b] for a, b in pairwise(bounds)], strict=False):
        own = encoder._tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
        for (first, last), token in zip(own["offset_mapping"], own["input_ids"], strict=True):
            found[first + start, last + start] = token
    other = set(plain.items() ^ found.items())
    assert all(any(start - 4 <= edge <= end + 4 for edge in edges) for (start, end), _ in other)
