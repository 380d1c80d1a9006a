"""Scaffolds: which tokens are encoded together, and what stands for a union."""

# ruff: noqa: E501 (documents are read in lines)

from __future__ import annotations

import pytest

from tests.layout.test_layout import errors_of, layout_of, text_of
from vllm_promptcache.layout.schema import SchemaLayout


def scaffold_texts(layout: SchemaLayout) -> dict[str, str]:
    return {scaffold.unit.id: text_of(scaffold.unit) for scaffold in layout.scaffolds}


def names(layout: SchemaLayout, mask: int) -> list[str]:
    return [module.path for module in layout.modules if mask >> module.index & 1]


def test_own_texts_in_position_order() -> None:
    layout = layout_of(
        'r<module name="a">aa<module name="x">xx</module>AA</module><module name="b">bb<param name="p" len="2"/>'
        '</module><scaffold modules="b a"/>'
    )
    assert scaffold_texts(layout) == {"s:a+b": "aa|AAbb__"}
    (scaffold,) = layout.scaffolds
    assert names(layout, scaffold.required) == names(layout, scaffold.covered) == ["s/a", "s/b"]
    assert [seen.id for seen in scaffold.unit.context] == ["s"]
    assert [(piece.module, piece.start, piece.end) for piece in scaffold.pieces] == [
        (1, 1, 3),
        (1, 5, 7),
        (3, 7, 9),
    ]


def test_context_is_what_encloses_a_member_and_is_none_itself() -> None:
    nested = (
        'r<module name="a">a<module name="b">b<module name="c">c</module></module></module>'
        '<module name="d">d</module><scaffold modules="{}"/>'
    )
    contexts = {
        modules: [seen.id for seen in layout_of(nested.format(modules)).scaffolds[0].unit.context]
        for modules in ("a/b/c d", "a a/b/c", "a/b d")
    }
    assert contexts == {"a/b/c d": ["s", "s/a", "s/a/b"], "a a/b/c": ["s", "s/a/b"], "a/b d": ["s", "s/a"]}
    isolated = layout_of(nested.format("a/b/c d"), attributes=' encode="isolated"')
    assert isolated.scaffolds[0].unit.context == ()


def test_context_leaves_out_what_is_not_cached() -> None:
    layout = layout_of(
        '<module name="a" cache="false">a<module name="b">b</module></module><module name="c">c</module>'
        '<scaffold modules="a/b c"/>'
    )
    assert layout.scaffolds[0].unit.context == ()


STAND_IN = (
    '<module name="a">a<union scaffold="m"><module name="m">m<union scaffold="k"><module name="k">k</module>'
    '<module name="l">l</module></union></module><module name="n">n<union scaffold="y"><module name="y">y</module>'
    '</union></module></union></module><module name="b">b</module><scaffold modules="{}"/>'
)


@pytest.mark.parametrize(
    ("modules", "text", "covered"),
    [
        ("a b", "amkb", ["s/a", "s/a/m", "s/a/m/k", "s/b"]),
        # A listed member is a member like any other, and what stands for unions in it joins.
        ("a a/m b", "amkb", ["s/a", "s/a/m", "s/a/m/k", "s/b"]),
        # With another member listed nothing stands for the union.
        ("a a/n b", "anyb", ["s/a", "s/a/n", "s/a/n/y", "s/b"]),
        ("a a/n/y b", "a|yb", ["s/a", "s/a/n/y", "s/b"]),
        ("a a/m/l b", "amlb", ["s/a", "s/a/m", "s/a/m/l", "s/b"]),
        ("b", "b", ["s/b"]),
    ],
)
def test_the_member_that_stands_for_a_union(modules: str, text: str, covered: list[str]) -> None:
    layout = layout_of(STAND_IN.format(modules))
    (scaffold,) = layout.scaffolds
    assert text_of(scaffold.unit) == text
    assert names(layout, scaffold.covered) == covered
    assert [path.removeprefix("s/") for path in names(layout, scaffold.required)] == modules.split()


def test_a_stand_in_inside_a_module_that_is_not_listed() -> None:
    layout = layout_of(
        '<module name="a">a<module name="i">i<union scaffold="m"><module name="m">m</module></union></module></module>'
        '<scaffold modules="a"/>'
    )
    (scaffold,) = layout.scaffolds
    assert text_of(scaffold.unit) == "a|m"
    # The module between them is not always there with the scaffold, so it cannot be its context.
    assert [seen.id for seen in scaffold.unit.context] == []


def test_a_stand_in_that_is_not_cached_takes_no_part() -> None:
    layout = layout_of(
        '<module name="a">a<union scaffold="m"><module name="m" cache="false">m</module></union></module>'
        '<scaffold modules="a"/>'
    )
    assert text_of(layout.scaffolds[0].unit) == "a"


def test_preference_and_order_of_units() -> None:
    layout = layout_of(
        '<scaffold modules="a b"/><module name="a">a</module><module name="b">b</module>'
        '<module name="c">c</module><scaffold modules="c b"/><scaffold modules="a b c"/>'
    )
    assert [scaffold.unit.id for scaffold in layout.scaffolds] == ["s:a+b+c", "s:a+b", "s:b+c"]
    seen: set[str] = set()
    for unit in layout.units:
        assert all(context.id in seen for context in unit.context)
        seen.add(unit.id)
    assert seen >= {"s:a+b+c", "s:a+b", "s:b+c"}


def test_a_scaffold_without_text_is_none() -> None:
    assert layout_of('<module name="a"/><module name="b"/><scaffold modules="a b"/>').scaffolds == ()


def test_the_same_scaffold_twice() -> None:
    content = '<module name="a">a</module><module name="b">b</module><scaffold modules="a b"/><scaffold modules="b a"/>'
    assert errors_of(content) == ["schema[s]/scaffold/@modules: another scaffold names the same modules"]
