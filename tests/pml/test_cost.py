"""What a hostile document costs: calls are counted, not seconds, and stay in proportion to what was sent."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType

import pytest

from tests.byte_tokenizer import byte_tokenizer
from vllm_promptcache.errors import PMLError, unknown
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.source import Source


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, Python's own among them."""
    number = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal number
        number += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


def refusal(text: str) -> None:
    with pytest.raises(PMLError):
        parse_document(text)


def bytes_decoded(data: bytes, offsets: list[int]) -> int:
    """How many bytes are looked at for the columns of offsets."""

    class Counted(bytes):
        number = 0

        def __getitem__(self, key: object) -> bytes:  # type: ignore[override]
            part = bytes.__getitem__(self, key)  # type: ignore[index]
            Counted.number += len(part)
            return part

    source = Source("pml", Counted(data))
    assert [source.column(offset) for offset in offsets] == [offset + 1 for offset in offsets]
    return Counted.number


def test_a_name_is_compared_with_few_others() -> None:
    names = [f"document_{i:05}_of_the_archive" for i in range(1000)]
    assert calls_of(lambda: unknown("module", "document_0x500_of_the_archive", names)) < 20_000


def layout_of(content: str):  # type: ignore[no-untyped-def]
    (schema,) = parse_document(f'<schema name="s">{content}</schema>').schemas
    return build_layout(schema, byte_tokenizer(), 1 << 20)


def test_arguments_of_one_element_cost_what_they_are() -> None:
    def work(number: int) -> int:
        names = [f"p{i}" for i in range(number)]
        parameters = "".join(f'<parameter name="{name}" length="1"/>' for name in names)
        layout = layout_of(f'<module name="m">m{parameters}</module>')
        given = " ".join(f'{name}="x"' for name in names)
        elements = "".join(f'<argument name="{name}">x</argument>' for name in names)
        as_attributes = f'<prompt schema="s"><m {given}/></prompt>'
        as_elements = f'<prompt schema="s"><m>{elements}</m></prompt>'

        def plan(text: str) -> None:
            prompt = parse_document(text).prompt
            assert prompt is not None
            build_plan(layout, prompt)

        return calls_of(lambda: plan(as_attributes)) + calls_of(lambda: plan(as_elements))

    assert work(1000) < 2.5 * work(500)
    with pytest.raises(PMLError, match=r"prompt/m: more than 1024 attributes"):
        work(1025)


@pytest.mark.parametrize(
    "piece",
    [
        '<module name="m"/>',
        "<module name='a'><module name='a'><system>x</system></module></module>",
        "<union><module name='m'/></union>",
        "<scaffold modules='m'/>",
        "<x/>",
        "<module nam='m'/>",
        "&#10; \n ",
        "<!-- x -->\n",
        "<![CDATA[ ]]>",
    ],
)
def test_what_is_repeated_in_a_schema_costs_what_it_is(piece: str) -> None:
    def work(number: int) -> int:
        text = f'<schema name="s"><module name="m"/><y/>{piece * number}</schema>'
        return calls_of(lambda: refusal(text))

    assert work(2000) < 2.5 * work(1000) + 1000


@pytest.mark.parametrize("piece", ["<m/>", "<m/>text", "<use module='m/n'/>", "<n/>", "<zz/>", "<m p='1'/>"])
def test_what_is_repeated_in_a_prompt_costs_what_it_is(piece: str) -> None:
    names = "".join(f'<module name="n{i}"/>' for i in range(200))
    layout = layout_of(f'<module name="m">m<module name="n">n</module></module>{names}')

    def work(number: int) -> int:
        prompt = parse_document(f'<prompt schema="s">{piece * number}</prompt>').prompt
        assert prompt is not None

        def plan() -> None:
            with pytest.raises(PMLError):
                build_plan(layout, prompt)

        return calls_of(plan)

    # Beyond a hundred mistakes nothing is looked at.
    assert work(2000) < 1.1 * work(1000) + 1000


def test_nesting_costs_what_it_is() -> None:
    def nested(levels: int, width: int) -> str:
        inside = "<module name='x'><module name='y'/></module>".replace("x", "{}")
        leaves = "".join(inside.format(f"x{i}") for i in range(width))
        opened = "".join(f"<module name='d{i}'>" for i in range(levels))
        return f"<schema name='s'>{opened}{leaves}{'</module>' * levels}</schema>"

    few = calls_of(lambda: parse_document(nested(2, 500)))
    assert calls_of(lambda: parse_document(nested(60, 500))) < 1.5 * few


def test_a_long_line_is_read_once_for_all_its_mistakes() -> None:
    data = b"x" * 100_000
    assert bytes_decoded(data, list(range(1000, 100_000, 1000))) <= len(data)


def test_paths_take_a_bounded_room() -> None:
    """A document in which long names stand in each other, and many short ones in the last of them."""

    def nested(num_leaves: int) -> str:
        opened = "".join(f"<module name='{'d' * 120}{i}'>" for i in range(60))
        leaves = "".join(f"<module name='m{i}'>x</module>" for i in range(num_leaves))
        return f"<schema name='s'>{opened}{leaves}{'</module>' * 60}</schema>"

    tracemalloc.start()
    try:
        (schema,) = parse_document(nested(500)).schemas
        layout = build_layout(schema, byte_tokenizer(), 1 << 20)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(layout.modules) == 561
    assert held < 16 * 1024 * 1024
    with pytest.raises(PMLError, match="the modules' paths have more than 4194304 characters"):
        parse_document(nested(600))
    with pytest.raises(PMLError, match="has 1000000 characters; 128 are allowed"):
        parse_document(f"<schema name='{'s' * 1_000_000}'><module name='a'/></schema>")
