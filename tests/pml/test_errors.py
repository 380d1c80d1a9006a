"""Every error of the language, text in, text out: `line:column: path: what`."""

# ruff: noqa: E501 (a table is read in lines)

from __future__ import annotations

import pickle
import sys

import pytest

from vllm_promptcache.errors import MAX_ISSUES, PMLError
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.parser import parse_document

SCHEMA = '<schema name="s">'


def errors_of(text: str | bytes, limits: Limits | None = None) -> list[str]:
    """The issues of a document, without the name of the field."""
    with pytest.raises(PMLError) as caught:
        parse_document(text, "pml", limits or Limits())
    lines = str(caught.value).split("\n")
    assert all(line.startswith("pml:") for line in lines)
    return [line.removeprefix("pml:") for line in lines]


MALFORMED = {
    "": "1:1: /: not well-formed XML: no element found",
    "text": "1:1: /: not well-formed XML: syntax error",
    "<schema": "1:1: /: not well-formed XML: unclosed token",
    '<schema name="s">': "1:18: schema[s]: not well-formed XML: no element found",
    '<schema name="s"><module></schema>': (
        "1:28: schema[s]/module: not well-formed XML: mismatched tag: an element is not closed, or a '<' in text is"
        " not written &lt;"
    ),
    '<schema name="s">a & b</schema>': (
        "1:20: schema[s]: not well-formed XML: '&' as text is written &amp;, or stands in CDATA"
    ),
    '<schema name="s">&nbsp;</schema>': (
        "1:18: schema[s]: not well-formed XML: '&nbsp;' is no entity of XML: write the character itself, or &#160;"
    ),
    '<schema name="s">&#0;</schema>': (
        "1:18: schema[s]: not well-formed XML: &#0; is U+0000 NULL, which XML cannot hold: leave it out, or register"
        " the text in the JSON form, which takes any, as messages do"
    ),
    '<schema name="s" name="t"/>': "1:18: /: not well-formed XML: duplicate attribute",
    "<prompt schema='s'/><prompt schema='s'/>": "1:21: /: not well-formed XML: junk after document element",
    "<prompt schema='s'>\n\u00e9\u00e9 \x01</prompt>": (
        "2:4: prompt: not well-formed XML: XML cannot hold U+0001 START OF HEADING: leave it out, or register the text"
        " in the JSON form, which takes any, as messages do"
    ),
    '<!DOCTYPE schema><schema name="s"/>': "1:1: /: a document type declaration (DTD) is not allowed",
    '<!DOCTYPE a [<!ENTITY x "y">]><schema name="s">&x;</schema>': (
        "1:1: /: a document type declaration (DTD) is not allowed"
    ),
    '<!DOCTYPE a SYSTEM "http://localhost/x.dtd"><schema name="s"/>': (
        "1:1: /: a document type declaration (DTD) is not allowed"
    ),
    '<?xml version="1.1"?><schema name="s"/>': "1:1: /: XML version '1.1'; only 1.0 is allowed",
    '<?xml version="1.0" encoding="latin-1"?><schema name="s"/>': (
        "1:1: /: encoding 'latin-1'; only UTF-8 is allowed"
    ),
    "<html/>": "1:1: html: a document is a 'pml', 'schema' or 'prompt' element, not 'html'",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_malformed_is_refused(text: str) -> None:
    assert errors_of(text) == [MALFORMED[text]]


def test_all_characters_that_are_not_right_are_named_at_once() -> None:
    text = """<schema name="s" encode="a & b">
  <module name="a">x\f y < 3 && z \uffff</module>
  <!-- & < are fine here, \x1b is not -->
  <module name="b"><![CDATA[ a & b < c \x00]]> ]]> &mdash; &foo; &#12; &amp; &#65; <b p="1<2"/></module>
</schema>"""
    prefix = "not well-formed XML: "
    assert [error.replace(prefix, "").split(": ", 2)[::2] for error in errors_of(text)] == [
        ["1:28", "'&' as text is written &amp;, or stands in CDATA"],
        ["2:21", "XML cannot hold U+000C FORM FEED: leave it out, or register the text in the JSON form, which takes any, as messages do"],
        ["2:25", "'<' begins no element: as text it is &lt;, or stands in CDATA"],
        ["2:29", "'&' as text is written &amp;, or stands in CDATA"],
        ["2:30", "'&' as text is written &amp;, or stands in CDATA"],
        ["2:34", "XML cannot hold U+FFFF NO CHARACTER: leave it out, or register the text in the JSON form, which takes any, as messages do"],
        ["3:27", "XML cannot hold U+001B ESCAPE: leave it out, or register the text in the JSON form, which takes any, as messages do"],
        ["4:40", "XML cannot hold U+0000 NULL: leave it out, or register the text in the JSON form, which takes any, as messages do"],
        ["4:45", "']]>' in text is written ]]&gt;"],
        ["4:49", "'&mdash;' is no entity of XML: write the character itself, or &#8212;"],
        ["4:57", "there is no entity '&foo;': as text it is written &amp;foo;"],
        ["4:63", "&#12; is U+000C FORM FEED, which XML cannot hold: leave it out, or register the text in the JSON form, which takes any, as messages do"],
        ["4:88", "'<' in an attribute's value is written &lt;"],
    ]  # fmt: skip


def test_what_is_no_xml_is_read_once() -> None:
    """Hostile markup: the reader never goes back over what it has seen."""
    for piece in ("<a ", '<a "', "<!--", "<![CDATA[", "<a>", "&", "<a b='<", "<?x", '"<'):

        def calls(number: int, piece: str = piece) -> int:
            count = 0

            def profile(frame: object, event: str, argument: object) -> None:
                nonlocal count
                count += 1

            sys.setprofile(profile)
            try:
                with pytest.raises(PMLError):
                    parse_document("<schema name='s'>" + piece * number)
            finally:
                sys.setprofile(None)
            return count

        assert calls(4000) < 3 * calls(2000) + 1000


def test_bytes_that_are_not_utf8_are_refused() -> None:
    assert errors_of(b'<schema name="s">\xff</schema>') == ["1:18: /: the document is not UTF-8 text"]
    assert errors_of(SCHEMA.encode("utf-16")) == ["1:1: /: the document is not UTF-8 text"]
    assert errors_of(SCHEMA.encode("utf-16-le")) == ["1:2: /: the document is not UTF-8 text"]
    assert errors_of("<schema name='s'>\ud800</schema>") == [
        "1:1: /: the document is not Unicode text: it has a lone surrogate"
    ]


def test_a_document_that_is_too_large_has_a_status_of_its_own() -> None:
    text = SCHEMA + "x" * 100 + "</schema>"
    for document in (text, text.encode()):
        with pytest.raises(PMLError) as caught:
            parse_document(document, limits=Limits(max_document_bytes=100))
        assert caught.value.status == 413
        assert "100" in str(caught.value)
    umlauts = SCHEMA + "ü" * 60 + "</schema>"
    assert len(umlauts) < 100 < len(umlauts.encode())
    with pytest.raises(PMLError) as caught:
        parse_document(umlauts, limits=Limits(max_document_bytes=100))
    assert caught.value.status == 413


def test_depth_is_limited() -> None:
    def nested(levels: int) -> str:
        names = range(levels - 1)
        opened = "".join(f'<module name="m{i}">' for i in names)
        return SCHEMA + opened + "x" + "</module>" * (levels - 1) + "</schema>"

    parse_document(nested(64))
    (error,) = errors_of(nested(65))
    assert error.endswith("/module[m63]: more than 64 levels of elements")


NAMES = {
    # Elements
    SCHEMA + '<modul name="a"/></schema>': [
        "1:18: schema[s]/modul: unknown element 'modul'; did you mean 'module'?"
    ],
    SCHEMA + "<b/></schema>": ["1:18: schema[s]/b: unknown element 'b'"],
    SCHEMA + '<parameter name="p" length="3"/></schema>': [
        "1:18: schema[s]/parameter[p]: a parameter cannot stand directly under 'schema': put it in a module"
    ],
    SCHEMA + '<system><param name="p" len="3"/></system></schema>': [
        "1:26: schema[s]/system/param[p]: a parameter cannot stand directly under 'schema': put it in a module"
    ],
    SCHEMA + '<module name="a"><scaffold modules="a"/></module></schema>': [
        "1:35: schema[s]/module[a]/scaffold: 'scaffold' cannot stand in 'module'"
    ],
    SCHEMA + "<union><union/></union></schema>": [
        "1:25: schema[s]/union/union: 'union' cannot stand in 'union'"
    ],
    SCHEMA + "<prompt schema='s'/></schema>": ["1:18: schema[s]/prompt: 'prompt' cannot stand in 'schema'"],
    SCHEMA + "<system><user>x</user></system></schema>": [
        "1:26: schema[s]/system/user: roles do not nest in each other"
    ],
    SCHEMA + '<system><module name="a"><user>x</user></module></system></schema>': [
        "1:43: schema[s]/system/module[a]/user: roles do not nest in each other"
    ],
    SCHEMA + "<union>text</union></schema>": ["1:25: schema[s]/union: text cannot stand in 'union'"],
    SCHEMA + '<module name="a"><param name="p" len="1"><b/></param></module></schema>': [
        "1:59: schema[s]/module[a]/param[p]/b: 'param' cannot have anything in it"
    ],
    "<pml>text<moduel/></pml>": [
        "1:6: pml: text cannot stand in 'pml'",
        "1:10: pml/moduel: unknown element 'moduel'",
    ],
    "<pml><shema name='a'/></pml>": ["1:6: pml/shema: unknown element 'shema'; did you mean 'schema'?"],
    # Attributes
    "<schema/>": ["1:1: schema: attribute 'name' is missing"],
    '<schema nam="s"/>': ["1:9: schema/@nam: unknown attribute 'nam'; did you mean 'name'?"],
    '<schema name="s" xml:space="preserve"/>': [
        "1:18: schema[s]/@xml:space: unknown attribute 'xml:space'; did you mean 'space'?"
    ],
    '<schema name="s" encode="alone"/>': [
        "1:18: schema[s]/@encode: 'encode' is 'alone'; allowed are 'context', 'isolated', 'sequence'"
    ],
    '<schema name="s" space="keep"/>': [
        "1:18: schema[s]/@space: 'space' is 'keep'; allowed are 'dedent', 'compact', 'normalize', 'preserve'"
    ],
    SCHEMA + '<module name="a" cache="no"/></schema>': [
        "1:35: schema[s]/module[a]/@cache: 'cache' is 'no'; allowed are 'true', 'false'"
    ],
    SCHEMA + '<module name="a"><parameter name="p"/></module></schema>': [
        "1:35: schema[s]/module[a]/parameter[p]: attribute 'length' is missing"
    ],
    SCHEMA + '<module name="a"><parameter name="p" length="0"/></module></schema>': [
        "1:55: schema[s]/module[a]/parameter[p]/@length: 'length' is '0'; it must be a number of tokens, at least 1"
    ],
    SCHEMA + '<module name="a"><param name="p" len="ten"/></module></schema>': [
        "1:51: schema[s]/module[a]/param[p]/@len: 'length' is 'ten'; it must be a number of tokens, at least 1"
    ],
    SCHEMA + '<module name="a"><param name="p" length="3" len="3"/></module></schema>': [
        "1:62: schema[s]/module[a]/param[p]/@len: 'len' and 'length' mean the same"
    ],
    SCHEMA + '<module name="a"><param name="p" len="3" placeholder="pad"/></module></schema>': [
        "1:59: schema[s]/module[a]/param[p]/@placeholder: 'placeholder' is 'pad'; allowed are 'unk', 'none'"
    ],
    SCHEMA + '<module name="a" src="a.txt"/></schema>': [
        "1:35: schema[s]/module[a]/@src: 'src' is allowed only in schemas that are loaded from disk"
    ],
    # Names
    '<schema name="a/b"/>': ["1:9: schema[a/b]/@name: the name 'a/b' of a schema has a '/'"],
    SCHEMA + '<module name=""/></schema>': [
        "1:26: schema[s]/module[]/@name: a name needs a character that can be seen"
    ],
    SCHEMA + '<module name="\u00a0"/></schema>': [
        "1:26: schema[s]/module[\\xa0]/@name: a name needs a character that can be seen"
    ],
    SCHEMA + '<module name="a&#10;b"/></schema>': [
        "1:26: schema[s]/module[a\\nb]/@name: the name 'a\\nb' has U+000A LINE FEED: a name is one line of text"
    ],
    SCHEMA + f'<module name="{"x" * 129}"/></schema>': [
        f"1:26: schema[s]/module[{'x' * 64}]/@name: the name '{'x' * 64}'… has 129 characters; 128 are allowed"
    ],
    SCHEMA + '<module name="a/b"/><module name="a"><module name="b"/></module></schema>': [
        "1:63: schema[s]/module[a]/module[b]/@name: the path 'a/b' of the module is that of another one"
    ],
    SCHEMA + "<module name='a'/><scaffold><use module='a'/><use/><b/></scaffold></schema>": [
        "1:63: schema[s]/scaffold/use: attribute 'module' is missing",
        "1:69: schema[s]/scaffold/b: 'scaffold' can hold nothing but 'use'",
    ],
    SCHEMA + '<module name="a"/><module name="a"/></schema>': [
        "1:44: schema[s]/module[a]/@name: the name 'a' is taken by another module or union next to it"
    ],
    SCHEMA + '<module name="a"/><union><module name="b"/><module name="a"/></union></schema>': [
        "1:69: schema[s]/union/module[a]/@name: the name 'a' is taken by another module or union next to it"
    ],
    SCHEMA + '<union name="a"><module name="a"/></union></schema>': [
        "1:42: schema[s]/union[a]/module[a]/@name: the name 'a' is taken by another module or union next to it"
    ],
    SCHEMA + '<system><module name="a"/></system><module name="a"/></schema>': [
        "1:61: schema[s]/module[a]/@name: the name 'a' is taken by another module or union next to it"
    ],
    SCHEMA + '<module name="a"><param name="p" len="1"/><param name="p" len="2"/></module></schema>': [
        "1:67: schema[s]/module[a]/param[p]/@name: the name 'p' is taken by another parameter next to it"
    ],
    "<pml><schema name='a'/><schema name='a'/></pml>": [
        "1:32: pml/schema[a]/@name: there is another schema 'a'"
    ],
    # Unions and scaffolds
    SCHEMA + '<union scaffold="bleu"><module name="red"/><module name="blue"/></union></schema>': [
        "1:25: schema[s]/union/@scaffold: unknown member 'bleu'; did you mean 'blue'?"
    ],
    SCHEMA + "<scaffold/></schema>": ["1:18: schema[s]/scaffold: attribute 'modules' is missing"],
    SCHEMA + '<scaffold modules=" "/></schema>': [
        "1:28: schema[s]/scaffold/@modules: a scaffold needs at least one module"
    ],
    SCHEMA + '<module name="one"/><scaffold modules="one two"/></schema>': [
        "1:48: schema[s]/scaffold/@modules: unknown module 'two'"
    ],
    SCHEMA + '<module name="one"><module name="deep"/></module><scaffold modules="one/dep one"/></schema>': [
        "1:77: schema[s]/scaffold/@modules: unknown module 'dep'; did you mean 'deep'? in 'one/dep'"
    ],
    SCHEMA + '<module name="one"/><scaffold modules="one one"/></schema>': [
        "1:48: schema[s]/scaffold/@modules: module 'one' is named twice"
    ],
    SCHEMA + '<module name="one" cache="false"/><scaffold modules="one"/></schema>': [
        "1:62: schema[s]/scaffold/@modules: module 'one' has cache=\"false\" and cannot be encoded in a scaffold"
    ],
    SCHEMA
    + '<union name="u"><module name="a"/><module name="b"/></union><scaffold modules="a b"/></schema>': [
        "1:88: schema[s]/scaffold/@modules: 'b' and 'a' are members of one union: no prompt has both"
    ],
    SCHEMA + '<union name="u"><module name="a"/></union><scaffold modules="u/a"/></schema>': [
        "1:70: schema[s]/scaffold/@modules: 'u' is a union: paths name its members without it"
    ],
    # Pools
    SCHEMA + '<pool length="9"/></schema>': ["1:18: schema[s]/pool: attribute 'name' is missing"],
    SCHEMA + '<pool name="p" length="0"/></schema>': [
        "1:33: schema[s]/pool[p]/@length: 'length' is '0'; it must be a number of tokens, at least 1"
    ],
    SCHEMA + '<pool name="p">text</pool></schema>': ["1:33: schema[s]/pool[p]: text cannot stand in 'pool'"],
    SCHEMA + '<pool name="p"><module/></pool></schema>': [
        "1:33: schema[s]/pool[p]/module: attribute 'name' is missing"
    ],
    SCHEMA + '<pool name="p"><module name="a"><module name="b"/></module></pool></schema>': [
        "1:50: schema[s]/pool[p]/module[a]/module[b]: 'module' cannot stand in 'module'"
    ],
    SCHEMA + '<pool name="p"><union name="u"/></pool></schema>': [
        "1:33: schema[s]/pool[p]/union[u]: 'union' cannot stand in 'pool'"
    ],
    SCHEMA + '<pool name="p"><module name="a"><user>x</user></module></pool></schema>': [
        "1:50: schema[s]/pool[p]/module[a]/user: 'user' cannot stand in 'module'"
    ],
    SCHEMA + '<union><pool name="p"/></union></schema>': [
        "1:25: schema[s]/union/pool[p]: 'pool' cannot stand in 'union'"
    ],
    SCHEMA + '<pool name="p"><module name="a b"/><module name="a b"/></pool></schema>': [
        "1:61: schema[s]/pool[p]/module[a b]/@name: the name 'a b' is taken by another module or union next to it"
    ],
    SCHEMA + '<module name="p"/><pool name="p"/></schema>': [
        "1:42: schema[s]/pool[p]/@name: the name 'p' is taken by another module, union or pool next to it"
    ],
    SCHEMA + '<pool name="p"><module name="a"/></pool><scaffold modules="p"/></schema>': [
        "1:68: schema[s]/scaffold/@modules: unknown module 'p'"
    ],
    "<prompt schema='s'><p><use/></p></prompt>": ["1:23: prompt/p/use: attribute 'module' is missing"],
    "<prompt schema='s'><p><module>x</module></p></prompt>": [
        "1:23: prompt/p/module: attribute 'name' is missing"
    ],
    "<prompt schema='s'><p><module name='m'>x<b/></module></p></prompt>": [
        "1:41: prompt/p/module[m]/b: a module that comes with a prompt holds text only"
    ],
    # Prompts
    "<prompt/>": ["1:1: prompt: attribute 'schema' is missing"],
    "<prompt shema='s'/>": ["1:9: prompt/@shema: unknown attribute 'shema'; did you mean 'schema'?"],
    "<pml><prompt schema='s'/><prompt schema='s'/></pml>": [
        "1:26: pml/prompt: a document has at most one prompt"
    ],
    "<prompt schema='s'><module name='a'/></prompt>": [
        "1:20: prompt/module[a]: 'module' cannot stand in a prompt"
    ],
    "<prompt schema='s'><use/></prompt>": ["1:20: prompt/use: attribute 'module' is missing"],
    "<prompt schema='s'><argument name='x'>y</argument></prompt>": [
        "1:20: prompt/argument[x]: 'argument' can stand only in the element of a module"
    ],
    "<prompt schema='s'><a p='1'><argument name='p'>2</argument></a></prompt>": [
        "1:39: prompt/a/argument[p]/@name: the argument 'p' is given twice"
    ],
    "<prompt schema='s'><user>x</user><a/></prompt>": [
        "1:20: prompt/user: a 'user' message can stand only after the last module of a prompt"
    ],
    "<prompt schema='s'><a><user>x</user></a></prompt>": [
        "1:23: prompt/a/user: 'user' can stand only directly in the prompt, after the last module"
    ],
    "<prompt schema='s'><user>x<user/></user></prompt>": [
        "1:27: prompt/user/user: 'user' can stand only directly in the prompt, after the last module"
    ],
    "<prompt schema='s'><user name='x'/></prompt>": ["1:26: prompt/user/@name: unknown attribute 'name'"],
    "<schema name='s'><tools/><user><tools length='0' x='1'>t</tools></user></schema>": [
        "1:32: schema[s]/user/tools: a schema has one place for tools, and this is another",
        "1:39: schema[s]/user/tools/@length: 'length' is '0'; it must be a number of tokens, at least 1",
        "1:50: schema[s]/user/tools/@x: unknown attribute 'x'",
        "1:56: schema[s]/user/tools: text cannot stand in 'tools'",
    ],
    "<schema name='s'><module name='m'><tools/></module><tool/></schema>": [
        "1:35: schema[s]/module[m]/tools: 'tools' cannot stand in 'module'",
        "1:52: schema[s]/tool: unknown element 'tool'; did you mean 'tools'?",
    ],
    "<prompt schema='s'><a space='x'/></prompt>": [
        "1:23: prompt/a/@space: 'space' is 'x'; allowed are 'dedent', 'compact', 'normalize', 'preserve'"
    ],
}


@pytest.mark.parametrize("text", NAMES)
def test_mistakes_are_named(text: str) -> None:
    assert errors_of(text) == NAMES[text]


def test_a_document_with_three_mistakes_reports_three() -> None:
    text = """<schema name="s">
  <module name="one" cach="true"/>
  ü<module nme="two"><parameter name="p" length="many"/></module>
</schema>"""
    assert errors_of(text) == [
        "2:22: schema[s]/module[one]/@cach: unknown attribute 'cach'; did you mean 'cache'?",
        "3:12: schema[s]/module/@nme: unknown attribute 'nme'; did you mean 'name'?",
        "3:42: schema[s]/module/parameter[p]/@length: 'length' is 'many'; it must be a number of tokens, at least 1",
    ]


def test_a_misspelt_element_is_read_as_what_was_meant() -> None:
    """So that one mistake does not make others: the scaffold knows the module, its own mistakes show."""
    text = SCHEMA + '<modul name="a" cahe="true"/><scaffold modules="a"/></schema>'
    assert errors_of(text) == [
        "1:18: schema[s]/modul: unknown element 'modul'; did you mean 'module'?",
        "1:34: schema[s]/modul/@cahe: unknown attribute 'cahe'; did you mean 'cache'?",
    ]


def test_how_much_a_document_may_hold() -> None:
    limits = Limits(max_elements=10, max_modules=3, max_scaffolds=1)
    modules = "".join(f'<module name="m{i}"/>' for i in range(3))
    parse_document(SCHEMA + modules + '<scaffold modules="m1"/></schema>', limits=limits)
    for extra, error in {
        '<module name="x"/>': "1:75: schema[s]/module[x]: more than 3 modules",
        '<scaffold modules="m1"/><scaffold modules="m2"/>': "1:99: schema[s]/scaffold: more than 1 scaffolds",
        "<union/>" * 7: "1:123: schema[s]/union: more than 10 elements",
    }.items():
        assert errors_of(SCHEMA + modules + extra + "</schema>", limits) == [error]


def test_white_space_is_xml_s() -> None:
    assert errors_of(SCHEMA + "<union>\u00a0</union></schema>") == [
        "1:25: schema[s]/union: text cannot stand in 'union'"
    ]


def test_no_more_issues_than_anyone_reads() -> None:
    assert len(errors_of(SCHEMA + "<x/>" * 1000 + "</schema>")) == MAX_ISSUES


def test_long_names_are_shortened_in_messages() -> None:
    (error,) = errors_of(SCHEMA + f"<{'x' * 100000}/></schema>")
    assert len(error) < 100_200


def test_an_error_survives_the_way_to_another_process() -> None:
    with pytest.raises(PMLError) as caught:
        parse_document("<schema/>", limits=Limits(max_document_bytes=3))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.issues, copy.status, str(copy)) == (caught.value.issues, 413, str(caught.value))
