"""What holds of every plan: of all cases of the table, and of generated schemas and prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.byte_tokenizer import byte_tokenizer
from tests.cases import CASES, ENCODE_MODES, Case
from tests.pool_cases import POOL_CASES
from vllm_promptcache.contract.explain import plan_to_json
from vllm_promptcache.contract.plain import plain_tokens
from vllm_promptcache.contract.plan import CachedSegment, NewSegment, Plan
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.nodes import (
    IncludeNode,
    ModuleNode,
    ParameterNode,
    PoolNode,
    PromptNode,
    RoleNode,
    SchemaChild,
    SchemaNode,
    TextNode,
    UnionNode,
)
from vllm_promptcache.pml.parser import parse_document


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Any) -> Any:
    return AutoTokenizer.from_pretrained(embedded_model)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> TextEncoder:
    return TextEncoder(tokenizer)


def check_plan(layout: SchemaLayout, plan: Plan) -> None:
    """Everything that must hold of a plan, whatever it came from."""
    _, positions = plain_tokens(plan)
    assert (np.diff(positions) > 0).all(), "positions increase from token to token"
    assert isinstance(plan.segments[-1], NewSegment), "a plan ends in new tokens"
    assert plan.next_position == positions[-1] + 1 <= layout.max_model_len
    assert plan.num_cached_tokens + plan.num_new_tokens == len(positions)
    for segment in plan.segments:
        assert segment.num_tokens > 0
        if isinstance(segment, CachedSegment):
            check_cached_segment(segment)
        else:
            assert (np.diff(segment.position_ids) == 1).all()
            assert len(segment.token_ids) == len(segment.position_ids)
    check_segments_are_maximal(plan)
    check_units(layout, plan)


def check_cached_segment(segment: CachedSegment) -> None:
    part = slice(segment.start, segment.end)
    assert 0 <= segment.start < segment.end <= segment.unit.num_tokens
    assert segment.unit.kept[part].all()
    assert (np.diff(segment.unit.position_ids[part]) == 1).all()


def check_segments_are_maximal(plan: Plan) -> None:
    cached = [segment for segment in plan.segments if isinstance(segment, CachedSegment)]
    for first in cached:
        for second in cached:
            if first.unit is second.unit and first.end == second.start:
                assert first.unit.position_ids[first.end - 1] + 1 != second.unit.position_ids[second.start]


def check_units(layout: SchemaLayout, plan: Plan) -> None:
    named = {segment.unit.id for segment in plan.segments if isinstance(segment, CachedSegment)}
    needed = set(named)
    encoded: set[str] = set()
    for unit in plan.units:
        if not any(unit.id.startswith(f"{pool}/") for pool in layout.pools):
            assert any(unit is known for known in layout.units), "units are shared, not copied"
        assert all(context.id in encoded for context in unit.context)
        encoded.add(unit.id)
        if unit.id in named:
            needed.update(context.id for context in unit.context)
    assert encoded == needed
    assert len(encoded) == len(plan.units)


# A second, plain reading of the PML page: no units, no masks, no sharing.


def expected_tokens(
    schema: SchemaNode, prompt: PromptNode, encoder: TextEncoder
) -> tuple[dict[int, int], list[int]]:
    """Tokens by position of everything included; and the new text's tokens in document order."""
    included: dict[int, int] = {}
    roles: list[str | None] = [None]
    bos = [] if encoder.bos is None else [encoder.bos]
    _lay_out(schema.children, _write(bos, 0, included), prompt.children, included, encoder, {}, roles)
    texts: list[int] = []
    included_roles = [role for role in roles if role is not None and not role.startswith("-")]
    _new_text(_without_pools(prompt.children, _pools(schema.children)), texts, encoder, included_roles)
    return included, texts


def _pools(children: Sequence[Any]) -> set[str]:
    """The names of pools anywhere in a schema: no case calls anything else so."""
    inside = [_pools(getattr(child, "children", ())) for child in children]
    return {child.name for child in children if isinstance(child, PoolNode)}.union(*inside)


def _without_pools(children: Sequence[Any], pools: set[str]) -> list[Any]:
    kept = [child for child in children if not (isinstance(child, IncludeNode) and child.name in pools)]
    return [
        replace(child, children=_without_pools(child.children, pools))
        if isinstance(child, IncludeNode)
        else child
        for child in kept
    ]


def _write(token_ids: Sequence[int], position: int, target: dict[int, int] | None) -> int:
    for token_id in token_ids:
        if target is not None:
            target[position] = token_id
        position += 1
    return position


def _lay_out(
    children: Sequence[SchemaChild],
    position: int,
    prompt: Sequence[Any] | None,
    target: dict[int, int] | None,
    encoder: TextEncoder,
    arguments: dict[str, str],
    roles: list[str | None],
) -> int:
    for child in children:
        if isinstance(child, TextNode):
            position = _write(encoder.encode(child.text), position, target)
        elif isinstance(child, ParameterNode):
            argument = arguments.get(child.name, child.default or "")
            _write(encoder.encode(argument), position, target)
            position += child.length
        elif isinstance(child, ModuleNode):
            position = _module(child, position, prompt, encoder, target, roles)
        elif isinstance(child, PoolNode):
            position = _pool(child, position, prompt, encoder, target)
        elif isinstance(child, UnionNode):
            inside = prompt
            for node in prompt or ():
                if isinstance(node, IncludeNode) and node.name == child.name:
                    inside = node.children
            ends = [_module(member, position, inside, encoder, target, roles) for member in child.members]
            position = max([position, *ends])
        elif isinstance(child, RoleNode):
            last = roles[-1].removeprefix("-") if roles[-1] else None
            before, after = encoder.role_tokens(child.role, last)
            position = _write(before, position, target)
            position = _lay_out(child.children, position, prompt, target, encoder, arguments, roles)
            position = _write(after, position, target)
            roles.append(child.role if target is not None else "-" + child.role)
    return position


def _pool(
    pool: PoolNode,
    position: int,
    prompt: Sequence[Any] | None,
    encoder: TextEncoder,
    target: dict[int, int] | None,
) -> int:
    declared = {member.name: member for member in pool.members}
    end = position
    for node in prompt or ():
        if not isinstance(node, IncludeNode) or node.name != pool.name:
            continue
        for child in node.children:
            if isinstance(child, TextNode):
                end = _write(encoder.encode(child.text), end, target)
            elif isinstance(child, ModuleNode):
                children = pool.with_separators(child.children)
                end = _lay_out(children, end, None, target, encoder, {}, [])
            else:
                children = pool.with_separators(declared[child.name].children)
                end = _lay_out(children, end, None, target, encoder, dict(child.arguments), [])
    return end if pool.length is None else position + pool.length


def _module(
    module: ModuleNode,
    position: int,
    prompt: Sequence[Any] | None,
    encoder: TextEncoder,
    target: dict[int, int] | None,
    roles: list[str | None],
) -> int:
    for node in prompt or ():
        if isinstance(node, IncludeNode) and node.name == module.name:
            arguments = dict(node.arguments)
            return _lay_out(module.children, position, node.children, target, encoder, arguments, roles)
    return _lay_out(module.children, position, None, None, encoder, {}, roles)


def _new_text(children: Sequence[Any], texts: list[int], encoder: TextEncoder, roles: list[str]) -> None:
    for child in children:
        if isinstance(child, TextNode):
            texts.extend(encoder.encode(child.text))
        elif isinstance(child, IncludeNode):
            _new_text(child.children, texts, encoder, roles)
        else:
            before, after = encoder.role_tokens(child.role, roles[-1] if roles else None)
            roles.append(child.role)
            texts.extend(before)
            for text in child.texts:
                texts.extend(encoder.encode(text.text))
            texts.extend(after)


def check_tokens(schema: SchemaNode, prompt: PromptNode, plan: Plan, encoder: TextEncoder) -> None:
    """The plan's tokens are those of the plain reading, at the same positions."""
    included, texts = expected_tokens(schema, prompt, encoder)
    token_ids, positions = plain_tokens(plan)
    found = dict(zip(positions.tolist(), token_ids.tolist(), strict=True))
    assert {position: found.get(position) for position in included} == included
    new = sorted(found[position] for position in found.keys() - included.keys())
    assert new == sorted(texts)


@pytest.mark.parametrize("mode", ENCODE_MODES)
@pytest.mark.parametrize("case", [*CASES, *POOL_CASES], ids=lambda case: case.name)
def test_every_case(case: Case, mode: str, tokenizer: Any, encoder: TextEncoder) -> None:
    schema_text, prompt_text = case.with_encode(mode).texts(tokenizer)
    (schema,) = parse_document(schema_text).schemas
    prompt = parse_document(prompt_text).prompt
    assert prompt is not None
    assert schema.encode == mode
    layout = build_layout(schema, encoder, case.max_model_len)
    plan = build_plan(layout, prompt)
    check_plan(layout, plan)
    check_tokens(schema, prompt, plan, encoder)
    if mode == "isolated":
        assert all(unit.context == () for unit in layout.units)


def test_case_names_are_unique_and_cover_blocks() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 36


# Generated schemas and prompts


class Writer:
    """Draws a schema and a prompt over it, with everything that may occur."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.count = 0
        self.paths: list[str] = []

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def text(self, low: int = 0, high: int = 4) -> str:
        return "".join("abcdefgh"[self.integer(0, 7)] for _ in range(self.integer(low, high)))

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def module(self, depth: int, path: str, chosen: bool, listable: bool) -> tuple[str, str]:
        """A module's PML, and the element that includes it (empty where it is not chosen)."""
        name = self.name("m")
        cache = self.integer(0, 4) > 0
        if cache and listable:
            self.paths.append(path + name)
        schema, prompt, arguments = "", "", ""
        for _ in range(self.integer(0, 4)):
            kind = self.integer(0, 5)
            if kind <= 1:
                schema += self.text()
            elif kind == 2:
                parameter, argument = self.parameter()
                schema += parameter
                arguments += argument
            elif depth < 3:
                part, include = self.part(depth + 1, f"{path}{name}/", listable)
                schema += part
                prompt += include
        attribute = "" if cache else ' cache="false"'
        element = f'<module name="{name}"{attribute}>{schema}</module>'
        return element, f"<{name}{arguments}>{prompt}</{name}>" if chosen else ""

    def parameter(self) -> tuple[str, str]:
        name, length = self.name("p"), self.integer(1, 4)
        extra = ""
        if self.integer(0, 1):
            extra += f' default="{self.text(0, length)}"'
        if self.integer(0, 1):
            extra += f' scaffold="{self.text(0, length)}"'
        if self.integer(0, 1):
            extra += ' placeholder="none"'
        argument = f' {name}="{self.text(0, length)}"' if self.integer(0, 1) else ""
        return f'<parameter name="{name}" length="{length}"{extra}/>', argument

    def part(self, depth: int, path: str, listable: bool) -> tuple[str, str]:
        if self.integer(0, 2):
            return self.module(depth, path, bool(self.integer(0, 3)), listable)
        number = self.integer(0, 3)
        chosen = self.integer(-1, number - 1)
        members, include = "", ""
        names = []
        for i in range(number):
            # Only one member may be listed in scaffolds: no prompt has two.
            element, text = self.module(depth, path, i == chosen, listable and i == 0)
            names.append(element.split('"')[1])
            members += element
            include += text
        attributes = ""
        if self.integer(0, 1):
            name = self.name("u")
            attributes += f' name="{name}"'
            include = f"<{name}>{include}</{name}>"
        if names and self.integer(0, 1):
            attributes += f' scaffold="{names[self.integer(0, number - 1)]}"'
        return f"<union{attributes}>{members}</union>", include

    def documents(self) -> tuple[str, str]:
        schema, prompt = "", ""
        for _ in range(self.integer(1, 5)):
            if self.integer(0, 1):
                schema += self.text()
            part, include = self.part(1, "", True)
            schema += part
            prompt += include
        sets = set()
        for _ in range(self.integer(0, 3)):
            if self.paths:
                sets.add(frozenset(self.draw(st.lists(st.sampled_from(self.paths), min_size=1, max_size=4))))
        for paths in sets:
            schema += f'<scaffold modules="{" ".join(sorted(paths))}"/>'
        mode = ENCODE_MODES[self.integer(0, len(ENCODE_MODES) - 1)]
        return f'<schema name="s" encode="{mode}">{schema}</schema>', f'<prompt schema="s">{prompt}!</prompt>'


@st.composite
def documents(draw: Any) -> tuple[str, str]:
    return Writer(draw).documents()


BYTES = TextEncoder(byte_tokenizer())


def plan_of(schema_text: str, prompt_text: str) -> tuple[SchemaNode, PromptNode, SchemaLayout, Plan]:
    (schema,) = parse_document(schema_text).schemas
    prompt = parse_document(prompt_text).prompt
    assert prompt is not None
    layout = build_layout(schema, BYTES, 10_000)
    return schema, prompt, layout, build_plan(layout, prompt)


def without_scaffolds(schema_text: str) -> str:
    start = schema_text.find("<scaffold modules")
    return schema_text if start < 0 else schema_text[:start] + "</schema>"


@settings(deadline=None)
@given(documents())
def test_generated_plans(pair: tuple[str, str]) -> None:
    schema, prompt, layout, plan = plan_of(*pair)
    check_plan(layout, plan)
    check_tokens(schema, prompt, plan, BYTES)


@settings(deadline=None)
@given(documents())
def test_neither_scaffolds_nor_contexts_change_the_tokens(pair: tuple[str, str]) -> None:
    plan = plan_of(*pair)[3]
    isolated = re.sub(' encode="[a-z]+"', ' encode="isolated"', without_scaffolds(pair[0]), count=1)
    plain = plan_of(isolated, pair[1])[3]
    for one, other in zip(plain_tokens(plan), plain_tokens(plain), strict=True):
        assert np.array_equal(one, other)
    assert plan.num_cached_tokens == plain.num_cached_tokens


@settings(deadline=None)
@given(documents())
def test_explained_plans_say_everything(pair: tuple[str, str]) -> None:
    plan = plan_of(*pair)[3]
    explained = json.loads(json.dumps(plan_to_json(plan)))
    units = {unit["id"]: unit for unit in explained["units"]}
    token_ids: list[int] = []
    position_ids: list[int] = []
    for segment in explained["segments"]:
        part = slice(None) if "new" in segment else slice(segment["start"], segment["end"])
        source = segment if "new" in segment else units[segment["unit"]]
        token_ids += source["token_ids"][part]
        position_ids += source["position_ids"][part]
    ids, positions = plain_tokens(plan)
    assert (token_ids, position_ids) == (ids.tolist(), positions.tolist())
    assert explained["num_cached_tokens"] + explained["num_new_tokens"] == len(token_ids)
    assert explained["next_position"] == position_ids[-1] + 1
    for unit in units.values():
        assert len(unit["token_ids"]) == len(unit["position_ids"]) == len(unit["kept"])
        assert all(context in units for context in unit["context"])


@settings(deadline=None)
@given(documents())
def test_every_unit_covers_its_module_s_text_once(pair: tuple[str, str]) -> None:
    layout = plan_of(*pair)[2]
    for module in layout.modules:
        pieces = list(_positions(module.pieces))
        assert len(pieces) == len(set(pieces)) == module.num_tokens
        assert all(module.start <= position < module.end for position in pieces)
        for child in module.children.values():
            assert module.start <= child.start <= child.end <= module.end
    for scaffold in layout.scaffolds:
        own = {p for m in layout.modules if scaffold.covered >> m.index & 1 for p in _positions(m.pieces)}
        assert set(_positions(scaffold.pieces)) == own
        assert scaffold.required & ~scaffold.covered == 0


def _positions(pieces: Sequence[Any]) -> Iterator[int]:
    for piece in pieces:
        yield from range(piece.start, piece.end)
