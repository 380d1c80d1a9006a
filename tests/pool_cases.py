"""Schemas with pools and prompts over them, in the form of `tests.cases`."""

from __future__ import annotations

from tests.cases import Case

_DESK = """<schema name="desk">Answer from these passages.
  <pool name="passages" length="400">
    <module name="opening">The desk opens at nine and closes at six.</module>
    <module name="late">A book that is late costs a coin a day.</module>
    <module name="report 2024.pdf#3">Eleven thousand books were lent in that year.</module>
    <module name="word">{1 tokens: w}</module>
  </pool>
  Say it shortly.
  <module name="rule">Never guess.</module></schema>"""

_BLOCKS = """<schema name="blocks">{5 tokens}
  <pool name="p" length="900"><module name="a">{32 tokens}</module><module name="b">{64 tokens: b}</module>
  <module name="c">{128 tokens: c}</module><module name="d">{33 tokens: d}</module>
  <module name="e">{127 tokens: e}</module></pool></schema>"""

_FORTY = (
    '<schema name="forty">Forty facts.<pool name="facts" length="900">'
    + "".join(
        f'<module name="{i}">Fact {i} is about {{{i % 7 + 1} tokens: v{i}}}.</module>' for i in range(40)
    )
    + "</pool></schema>"
)

_PARAMETERS = """<schema name="mail">Write mail. <pool name="lines" length="120">
  <module name="to">Dear <parameter name="who" length="8"/>, good day.</module>
  <module name="meet"><parameter name="when" length="5" default="noon"/> is when we meet
    <parameter name="where" length="6"/></module></pool> Yours.</schema>"""

_GAP = """<schema name="far">Start here. <module name="left_out">{700 tokens}</module>
  <module name="folder">In the folder: <pool name="files" length="300">
    <module name="x">{40 tokens: x}</module><module name="y">Shorter text.</module></pool> So much.</module>
  </schema>"""

_TWO = """<schema name="two">First notes. <pool name="notes" length="150">
    <module name="n">The same text in both.</module><module name="m">{50 tokens: m}</module></pool>
  Then files. <pool name="files" length="150"><module name="n">The same text in both.</module>
    <module name="today" cache="false">It is Monday.</module></pool> The end.</schema>"""

_OPEN = """<schema name="open">Here it begins. <module name="style">Rhyme.</module>
  <pool name="passages"><module name="one">Passage one is about boats.</module>
  <module name="two">Passage two is about the sea.</module></pool> Answer now.</schema>"""

_CHAT = """<schema name="chat"><system>Answer from these.
  <pool name="passages"><module name="one">Passage one is about boats.</module>
  <module name="two">Passage two is about the sea.</module></pool></system></schema>"""


def _desk(name: str, passages: str, rest: str = " When is it open?", notes: str = "") -> Case:
    return Case(
        name, _DESK, f'<prompt schema="desk"><passages>{passages}</passages>{rest}</prompt>', notes=notes
    )


POOL_CASES: tuple[Case, ...] = (
    _desk("pool-first", "<opening/><late/>"),
    _desk("pool-last", "<late/><word/><opening/>", notes="the same members at other places"),
    _desk("pool-any-name", '<late/><use module="report 2024.pdf#3"/>'),
    _desk("pool-one-token", "<word/><opening/><word/>", notes="a member twice"),
    _desk("pool-text-between", "First: <late/> and then <opening/> as said"),
    _desk("pool-brought", '<late/><module name="tmp/1">Text that came along, <![CDATA[a < b]]>.</module>'),
    _desk("pool-behind", "<late/><opening/>", "<rule/> When?", notes="a module behind the pool"),
    _desk("pool-text-after", "<late/><opening/>", " some text <rule/> When?"),
    _desk("pool-empty", ""),
    _desk("pool-nothing-new", "<late/><opening/>", ""),
    Case("pool-not-used", _DESK, '<prompt schema="desk"><rule/> When?</prompt>'),
    Case("pool-blocks", _BLOCKS, '<prompt schema="blocks"><p><c/><a/><b/></p>{3 tokens: q}</prompt>'),
    Case("pool-blocks-last-new", _BLOCKS, '<prompt schema="blocks"><p><b/><c/><a/></p></prompt>'),
    Case("pool-beside-blocks", _BLOCKS, '<prompt schema="blocks"><p><d/><e/><a/></p> Go.</prompt>'),
    Case(
        "pool-forty",
        _FORTY,
        '<prompt schema="forty"><facts>'
        + "".join(f'<use module="{i * 17 % 40}"/>' for i in range(40))
        + "</facts> Sum up.</prompt>",
    ),
    Case(
        "pool-parameters",
        _PARAMETERS,
        '<prompt schema="mail"><lines><meet where="here"/><to who="Ann Lee"/></lines> Go.</prompt>',
    ),
    Case("pool-defaults", _PARAMETERS, '<prompt schema="mail"><lines><to/><meet/></lines> Go.</prompt>'),
    Case(
        "pool-behind-a-gap",
        _GAP,
        '<prompt schema="far"><folder><files><y/><x/></files></folder> How many?</prompt>',
    ),
    Case(
        "pool-second",
        _TWO,
        '<prompt schema="two"><files><today/><n/></files><notes><m/><n/></notes> Which?</prompt>',
    ),
    Case("pool-open", _OPEN, '<prompt schema="open"><passages><two/><one/></passages> Where?</prompt>'),
    Case("pool-open-unused", _OPEN, '<prompt schema="open"><style/> Where?</prompt>'),
    Case(
        "pool-open-role",
        _CHAT,
        '<prompt schema="chat"><passages><two/><one/></passages><user>Where?</user></prompt>',
        needs_roles=True,
    ),
)
