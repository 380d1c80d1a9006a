"""Names of any kind, and the ways to include what has one."""

from __future__ import annotations

import unicodedata

import pytest

from tests.byte_tokenizer import byte_tokenizer, plan_text
from vllm_promptcache.errors import PMLError, unknown
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.attributes import MAX_NAME_CHARACTERS
from vllm_promptcache.pml.escape import text
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.parser import parse_document

NAMES = [
    "report 2024.pdf",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "资料",
    "Übersicht",
    "été",
    "1",
    "-",
    ".",
    "a:b",
    "user",
    "module",
    "use",
    "argument",
    "space",
    "https://example.com/a?b=c&d=<e>#f",
    "docs/read me.md",
    "'single' and \"double\"",
    "👋",
    "x" * MAX_NAME_CHARACTERS,
]


def composed(content: str, prompt: str) -> str:
    (schema,) = parse_document(f'<schema name="s">{content}</schema>').schemas
    node = parse_document(f'<prompt schema="s">{prompt}</prompt>').prompt
    assert node is not None
    layout = build_layout(schema, byte_tokenizer(), 4096)
    return plan_text(build_plan(layout, node), byte_tokenizer())


def refused(content: str, prompt: str) -> str:
    with pytest.raises(PMLError) as caught:
        composed(content, prompt)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_has_any_name(name: str) -> None:
    content = f'A<module name="{text(name)}">B</module><module name="other">C</module>'
    assert composed(content, f'<use module="{text(name)}"/>') == "AB"


@pytest.mark.parametrize("name", NAMES)
def test_unions_parameters_and_scaffolds_have_any_name(name: str) -> None:
    written = text(name)
    content = (
        f'<union name="{written}"><module name="a">A<parameter name="{written}" length="3"/></module></union>'
        f'<module name="b">B<module name="{written}">C</module></module>'
        f'<scaffold><use module="b/{written}"/><use module="a"/></scaffold>'
    )
    argument = f'<argument name="{written}">x y</argument>'
    assert composed(content, f'<use module="{written}"><a>{argument}</a></use>') == "Ax y"
    assert composed(content, f'<a>{argument}</a><use module="b/{written}"/>') == "Ax yBC"


@pytest.mark.parametrize("name", ["Übersicht", "资料", "a-b.c_d", "_", "été", "a:b"])
def test_elements_have_names_of_xml(name: str) -> None:
    content = f'A<module name="{name}">B<parameter name="{name}" length="2"/></module>'
    assert composed(content, f"<{name} {name}='x'/>") == "ABx"


NESTED = (
    '<module name="a">A<parameter name="p" length="3"/>'
    '<module name="b">B<module name="c">C</module></module><module name="b/d">D</module>'
    '<union name="u"><module name="e">E</module><module name="f">F</module></union></module>'
    '<pool name="pool" length="9"><module name="m/1">M</module></pool>'
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('<use module="a/b"/>', "AB"),
        ('<use module="a/b/c"/>', "ABC"),
        ('<use module="a/b/d"/>', "AD"),
        ('<use module="a/b/d"/><use module="a/b/c"/>', "ABCD"),
        ('<a><use module="b/c"/></a>', "ABC"),
        ('<a><use module="b"><c/></use></a>', "ABC"),
        ('<a p="x"/><use module="a/b"/>', "AxB"),
        ('<use module="a/b"/><a p="x"/>', "AxB"),
        ('<use module="a/b/c"/><a p="x"><b/></a>', "AxBC"),
        ('<use module="a" p="x"/>', "Ax"),
        ('<use module="a"><argument name="p">x</argument></use>', "Ax"),
        ('<a><argument name="p">\n  x\n</argument><b/></a>', "AxB"),
        ('<use module="a/e"/>', "AE"),
        ('<use module="a/u/f"/>', "AF"),
        ('<a><u><use module="f"/></u></a>', "AF"),
        ('<use module="pool/m/1"/>', "M"),
        ('<use module="pool"><use module="m/1"/></use><use module="pool/m/1"/>', "MM"),
        ('<use module="a/b"/> and <use module="pool"/>', "AB and "),
    ],
)
def test_use_includes_by_name_and_by_path(prompt: str, expected: str) -> None:
    assert composed(NESTED, prompt) == expected


REQUIRED = (
    '<module name="a">A<parameter name="p" length="3" required="true"/><module name="b">B</module></module>'
)


@pytest.mark.parametrize(
    ("content", "prompt", "message"),
    [
        (NESTED, '<use module="a/x"/>', "unknown module 'a/x'"),
        (NESTED, '<use module="a/u"/>', "unknown module 'a/u'"),
        (NESTED, '<use module="a//b"/>', "unknown module 'a//b'"),
        (NESTED, '<use module="b"/>', "unknown module 'b'; it is in 'a': put it there, or write"),
        (
            NESTED,
            '<a><use module="pool"/></a>',
            "unknown module 'pool'; it is directly in the schema: put it",
        ),
        (NESTED, "<c/>", 'or write <use module="a/b/c"/> directly in the prompt'),
        (NESTED, '<use module="a/e"/><use module="a/f"/>', "'a/f' and 'e' are members of one union"),
        (NESTED, '<use module="a/b"/><use module="a/b"/>', "included twice"),
        (NESTED, "<a/><a/>", "module 'a' is included twice"),
        (NESTED, '<use module="a/b"/><a/><a/>', "module 'a' is included twice"),
        (NESTED, '<a><argument name="q">x</argument></a>', "unknown parameter 'q'"),
        (NESTED, '<use module="pool/none"/>', "unknown module 'none'"),
        (REQUIRED, '<use module="a/b"/>', "parameter 'p' of module 'a' is required"),
        (REQUIRED, '<a p=""/>', "parameter 'p' of module 'a' is required"),
        (REQUIRED, '<a><argument name="p"> </argument></a>', "parameter 'p' of module 'a' is required"),
    ],
)
def test_what_cannot_be_used(content: str, prompt: str, message: str) -> None:
    assert message in refused(content, prompt)


def test_a_path_and_its_modules_element_say_the_arguments_once() -> None:
    assert composed(REQUIRED, '<use module="a/b"/><a p="x"/>') == "AxB"


def test_paths_are_bounded_together() -> None:
    """A module's path names all that it stands in, and is kept for each module."""
    limits = Limits(max_path_characters=1000)

    def nested(num_modules: int) -> str:
        inner = "".join(f'<module name="m{i:03}"/>' for i in range(num_modules))
        return f'<schema name="s"><module name="{"x" * 100}">{inner}</module></schema>'

    parse_document(nested(8), limits=limits)
    with pytest.raises(PMLError, match="the modules' paths have more than 1000 characters: shorten names"):
        parse_document(nested(9), limits=limits)


MANY = (
    '<schema name="s"><module name="rules"><module name="office">O</module><module name="home">H</module>'
    '<parameter name="when" length="3"/></module><module name="rooms">R<parameter name="size" length="3"/>'
    '</module><union name="by"><module name="plane">P</module><module name="train">T</module></union>'
    '<pool name="passages" length="9"><module name="opening">O</module></pool></schema>'
)


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [
        ("<ruels/>", "unknown module 'ruels'; did you mean 'rules'?"),
        ("<RULES/>", "unknown module 'RULES'; did you mean 'rules'?"),
        ("<ules/>", "unknown module 'ules'; did you mean 'rules'?"),
        ("<roms/>", "unknown module 'roms'; did you mean 'rooms'?"),
        (
            "<offcie/>",
            "unknown module 'offcie'; did you mean 'office'? It is in 'rules': put it there, or write",
        ),
        ("<rooms><rules/></rooms>", "unknown module 'rules'; it is directly in the schema"),
        ("<rooms><hom/></rooms>", "unknown module 'hom'; did you mean 'home'? It is in 'rules'"),
        ("<openin/>", "unknown module 'openin'; did you mean 'opening'? It is in 'passages'"),
        ("<passages><openin/></passages>", "unknown module 'openin'; did you mean 'opening'?"),
        ("<passages><home/></passages>", "unknown module 'home'; it is in 'rules': put it there"),
        ("<pasages/>", "unknown module 'pasages'; did you mean 'passages'?"),
        ("<bye/>", "unknown module 'bye'; did you mean 'by'?"),
        ("<by><plain/></by>", "unknown member 'plain'; did you mean 'plane'?"),
        ("<by><rules/></by>", "unknown module 'rules'; it is directly in the schema"),
        ("<rules whn='x'/>", "unknown parameter 'whn'; did you mean 'when'?"),
        ("<rules/><rooms when='x'/>", "unknown parameter 'when'; it is one of 'rules'"),
        ("<xyz/>", "unknown module 'xyz'"),
    ],
)
def test_the_nearest_name_is_said_wherever_it_stands(prompt: str, hint: str) -> None:
    layout = build_layout(parse_document(MANY).schemas[0], byte_tokenizer(), 4096)
    document = parse_document(f"<prompt schema='s'>{prompt}</prompt>")
    assert document.prompt is not None
    with pytest.raises(PMLError) as caught:
        build_plan(layout, document.prompt)
    assert hint in str(caught.value)


def test_the_nearest_of_many_names_is_the_nearest() -> None:
    """Also where others begin or end alike, or come first."""
    names = [f"report-{year}-{kind}" for year in range(1900, 2030) for kind in ("summary", "figures")]
    for name in ("report-1999-sumary", "eport-1999-summary", "report1999-summary", "REPORT-1999-SUMMARY"):
        assert unknown("module", name, names).endswith("did you mean 'report-1999-summary'?")
    assert unknown("schema", "travle", ["gravel", "travel"]).endswith("did you mean 'travel'?")


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("named", ["NFC", "NFD"])
def test_names_that_look_the_same_are_the_same(written: str, named: str) -> None:
    """Files of some systems have names whose accents are characters of their own."""
    schema = (
        '<schema name="s"><module name="été 1.pdf">A. <module name="ñandú">B.</module></module>'
        '<union name="ö"><module name="ü">C.</module></union>'
        '<pool name="pâte" length="20"><module name="crème">D.</module></pool></schema>'
    )
    prompt = (
        '<prompt schema="s"><use module="été 1.pdf/ñandú"/><ö><use module="ü"/></ö>'
        "<pâte><crème/></pâte> End.</prompt>"
    )
    layout = build_layout(
        parse_document(unicodedata.normalize(written, schema)).schemas[0], byte_tokenizer(), 4096
    )
    document = parse_document(unicodedata.normalize(named, prompt))
    assert document.prompt is not None
    assert plan_text(build_plan(layout, document.prompt), byte_tokenizer()) == "A. B.C.D. End."


@pytest.mark.parametrize("empty", ["", " ", "&#10;", "&#160;", "&#12288;"])
def test_what_is_required_is_more_than_white_space(empty: str) -> None:
    schema = (
        '<schema name="s"><module name="m"><parameter name="p" length="9" required="true"/></module></schema>'
    )
    layout = build_layout(parse_document(schema).schemas[0], byte_tokenizer(), 4096)
    document = parse_document(f"<prompt schema='s'><m p='{empty}'/> x</prompt>")
    assert document.prompt is not None
    with pytest.raises(PMLError, match="parameter 'p' of module 'm' is required"):
        build_plan(layout, document.prompt)
