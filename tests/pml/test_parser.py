"""Documents to syntax trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import CASES, Case
from vllm_promptcache.errors import PMLError
from vllm_promptcache.pml.files import find_schema_files
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.nodes import (
    IncludeNode,
    MessageNode,
    ModuleNode,
    ParameterNode,
    RoleNode,
    ScaffoldNode,
    SchemaChild,
    SchemaNode,
    TextNode,
    ToolsNode,
    UnionNode,
)
from vllm_promptcache.pml.parser import load_schema_file, parse_document
from vllm_promptcache.pml.source import Place, Source

HERE = Place(Source("test", b""), 0, None, "")


def children_of(content: str) -> tuple[SchemaChild, ...]:
    return parse_document(f'<schema name="s">{content}</schema>').schemas[0].children


def module(content: str) -> tuple[SchemaChild, ...]:
    (node,) = children_of(f'<module name="m">{content}</module>')
    assert isinstance(node, ModuleNode)
    return node.children


def test_a_schema_and_its_defaults() -> None:
    assert parse_document('<schema name="s"/>').schemas == (SchemaNode("s", "context", (), HERE),)
    (isolated,) = parse_document('<schema name="s" encode="isolated"/>').schemas
    assert isolated.encode == "isolated"


def test_every_element() -> None:
    assert children_of(
        'Text <module name="m" cache="false">in <parameter name="p" length="7"/></module>'
        '<union name="u" scaffold="b"><module name="a"/><module name="b"/></union>'
        '<system>S<module name="c"/></system><scaffold modules=" m\n u "/>'.replace(" u ", " a ").replace(
            "m\n", "c\n"
        )
    ) == (
        TextNode("Text ", HERE),
        ModuleNode(
            "m", False, (TextNode("in ", HERE), ParameterNode("p", 7, "", None, False, None, HERE)), HERE
        ),
        UnionNode("u", "b", (ModuleNode("a", True, (), HERE), ModuleNode("b", True, (), HERE)), HERE),
        RoleNode("system", (TextNode("S", HERE), ModuleNode("c", True, (), HERE)), HERE),
        ScaffoldNode((("c",), ("a",)), HERE),
    )


def test_a_place_for_tools() -> None:
    assert children_of("<system>S <tools/></system>") == (
        RoleNode("system", (TextNode("S ", HERE), ToolsNode(None, HERE)), HERE),
    )
    (before, tools) = children_of("\n  Be brief.\n\n  <tools length='400'/>\n")
    assert (before, tools) == (TextNode("Be brief.", HERE), ToolsNode(400, HERE))
    one, two = parse_document(
        "<pml><schema name='s'><tools/></schema><schema name='t'><tools/></schema></pml>"
    ).schemas
    assert one.children == two.children == (ToolsNode(None, HERE),)
    named = parse_document("<prompt schema='s'><tools/></prompt>").prompt
    assert named is not None and named.children == (IncludeNode("tools", {}, (), HERE),)


def test_a_parameter_and_its_aliases() -> None:
    full = '<{} name="p" {}="3" scaffold="x y" default="d" required="true" placeholder="none"/>'
    expected = (ParameterNode("p", 3, "x y", "d", True, "none", HERE),)
    assert module(full.format("parameter", "length")) == expected
    assert module(full.format("param", "len")) == expected


def test_space_is_inherited_and_may_be_changed() -> None:
    assert children_of('<module name="m" space="preserve">  a  <module name="n"> b  c <module name="o" '
                       'space="normalize"> d  e </module></module></module>  f  g') == (
        ModuleNode(
            "m",
            True,
            (
                TextNode("  a  ", HERE),
                ModuleNode(
                    "n",
                    True,
                    (TextNode(" b  c ", HERE), ModuleNode("o", True, (TextNode(" d e ", HERE),), HERE)),
                    HERE,
                ),
            ),
            HERE,
        ),
        TextNode("  f  g", HERE),
    )  # fmt: skip


def test_space_passes_through_documents_unions_and_roles() -> None:
    document = parse_document(
        '<pml space="preserve"><schema name="s"><union><module name="m">  a  </module></union>'
        "<user>  b  </user></schema><prompt schema='s'>  c  <m/><user>  d  </user></prompt></pml>"
    )
    union, role = document.schemas[0].children
    assert isinstance(union, UnionNode)
    assert isinstance(role, RoleNode)
    assert union.members[0].children == (TextNode("  a  ", HERE),)
    assert role.children == (TextNode("  b  ", HERE),)
    assert document.prompt is not None
    assert document.prompt.children == (
        TextNode("  c  ", HERE),
        IncludeNode("m", {}, (), HERE),
        MessageNode("user", (TextNode("  d  ", HERE),), HERE),
    )


def test_white_space_between_elements_is_no_text() -> None:
    assert [type(node) for node in children_of('\n <module name="a"/> \n <union>\n</union>\n')] == [
        ModuleNode,
        UnionNode,
    ]


def test_a_prompt() -> None:
    prompt = parse_document(
        """<prompt schema="s"> a <one p="x" space="preserve"> b  <two/></one>
        <user>Hi</user> c</prompt>"""
    ).prompt
    assert prompt is not None
    assert prompt.schema == "s"
    assert prompt.children == (
        TextNode(" a ", HERE),
        IncludeNode("one", {"p": "x"}, (TextNode(" b  ", HERE), IncludeNode("two", {}, (), HERE)), HERE),
        MessageNode("user", (TextNode("Hi", HERE),), HERE),
        TextNode(" c", HERE),
    )


def test_attribute_values_are_not_compacted() -> None:
    prompt = parse_document('<prompt schema="s"><m a="  x &lt; &#10; y "/></prompt>').prompt
    assert prompt is not None
    (include,) = prompt.children
    assert isinstance(include, IncludeNode)
    assert include.arguments == {"a": "  x < \n y "}


def test_a_document_of_several() -> None:
    document = parse_document('<pml><schema name="a"/> <prompt schema="a"/> <schema name="b"/></pml>')
    assert [schema.name for schema in document.schemas] == ["a", "b"]
    assert document.prompt is not None
    assert parse_document("<pml/>").schemas == ()


def test_names_may_repeat_where_they_are_no_siblings() -> None:
    children_of(
        '<module name="a"><module name="a"><param name="a" len="1"/></module></module>'
        '<module name="b"><module name="a"/></module>'
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_parses_and_says_the_same_in_bytes(case: Case) -> None:
    for text in (case.schema, case.prompt):
        assert parse_document(text) == parse_document(text.encode())


# Files


def test_src_is_text_in_front_of_the_module(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/a.txt").write_bytes("\ufeff  from <file> &amp;\r\n".encode())
    (tmp_path / "s.pml").write_text(
        '<schema name="s"><module name="m" src="parts/a.txt">more</module></schema>'
    )
    (node,) = load_schema_file(tmp_path / "s.pml").schemas[0].children
    assert isinstance(node, ModuleNode)
    assert node.children == (TextNode("  from <file> &amp;", HERE), TextNode("more", HERE))
    assert isinstance(node.children[0], TextNode)
    assert node.children[0].place.label("schema") == "parts/a.txt:1"


def test_src_stays_in_the_folder_of_the_schema(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "inside.txt").write_text("inside")
    (folder / "good.txt").symlink_to(folder / "inside.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "binary.txt").write_bytes(b"\xff")
    (folder / "large.txt").write_text("x" * 300)
    names = [
        "../secret.txt",
        str(tmp_path / "secret.txt"),
        "link.txt",
        "",
        "loop.txt",
        "none.txt",
        "binary.txt",
    ]
    names += [".", "large.txt"]
    modules = "".join(f'<module name="m{i}" src="{name}"/>\n' for i, name in enumerate(names))
    modules += '<module name="fine" src="good.txt"/>'
    (folder / "s.pml").write_text('<pml><schema name="s">\n' + modules + "</schema></pml>")
    with pytest.raises(PMLError) as caught:
        load_schema_file(folder / "s.pml", Limits(max_document_bytes=1000))
    issues = [(issue.line, issue.what) for issue in caught.value.issues]
    outside = "is not a path inside the folder of the schema's file"
    assert issues[:4] == [(i + 2, f"{names[i]!r} {outside}") for i in range(4)]
    assert issues[4:] == [
        (6, f"'loop.txt' {outside}")
        if issues[4][1].endswith(outside)
        else (6, "there is no file 'loop.txt'"),
        (7, "there is no file 'none.txt'"),
        (8, "'binary.txt' is not UTF-8"),
        (9, "there is no file '.'"),
    ]


def test_src_files_are_limited(tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_text("x" * 300)
    (tmp_path / "s.pml").write_text('<schema name="s"><module name="m" src="large.txt"/></schema>')
    with pytest.raises(PMLError, match=r"'large.txt' is larger than the 200 bytes"):
        load_schema_file(tmp_path / "s.pml", Limits(max_document_bytes=200))


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(PMLError, match=r"none.pml:1:1: /: cannot be read: No such file"):
        load_schema_file(tmp_path / "none.pml")
    (tmp_path / "large.pml").write_text("<schema name='large'/>")
    with pytest.raises(PMLError) as caught:
        load_schema_file(tmp_path / "large.pml", Limits(max_document_bytes=10))
    assert caught.value.status == 413


def test_schema_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.pml", "a.xml", "c.txt", "d.pml.bak"):
        (tmp_path / name).write_text("")
    for name in ("folder.pml", "inner/more", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("folder.pml/z.pml", "inner/more/a.pml", ".hidden/h.pml"):
        (tmp_path / name).write_text("")
    (tmp_path / "inner/again").symlink_to(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in find_schema_files(tmp_path)] == [
        *("a.xml", "b.pml", "folder.pml/z.pml", "inner/more/a.pml"),
    ]
    assert find_schema_files(tmp_path / "c.txt") == [tmp_path / "c.txt"]
