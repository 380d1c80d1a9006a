"""One table of schemas and prompts. It drives the tests of parse, layout and plan, and the end-to-end run.

`{N tokens}` in a text stands for words that the tokenizer gives exactly N tokens; `{N tokens: x}` for
others than `{N tokens}`. Schemas begin with `<schema name="…"`, so that `with_encode` can set the mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

ENCODE_MODES = ("context", "isolated", "sequence")

_COUNTED = re.compile(r"\{(\d+) tokens(?:: (\w+))?\}")
_WORDS = [
    *("time", "people", "water", "house", "light", "city", "river", "music", "garden", "window"),
    *("table", "paper", "story", "road", "money", "letter", "winter", "summer", "morning", "family"),
    *("school", "friend", "market", "horse", "ship", "stone", "forest", "island"),
]


@dataclass(frozen=True)
class Case:
    """A schema and a prompt over it. `needs_roles`: the model must have a chat template with roles."""

    name: str
    schema: str
    prompt: str
    max_model_len: int = 8192
    needs_roles: bool = False
    notes: str = ""

    def with_encode(self, mode: str) -> Case:
        """The same case with `encode` set to one of `ENCODE_MODES`."""
        schema = re.sub(
            r'<schema name="([^"]*)"', rf'<schema name="\1" encode="{mode}"', self.schema, count=1
        )
        return replace(self, schema=schema)

    def texts(self, tokenizer: Any) -> tuple[str, str]:
        """The schema's and the prompt's PML for a tokenizer."""
        return expand(self.schema, tokenizer), expand(self.prompt, tokenizer)


def expand(text: str, tokenizer: Any) -> str:
    """Puts words in the place of every `{N tokens}`."""
    return _COUNTED.sub(lambda match: counted_text(tokenizer, int(match[1]), match[2] or ""), text)


def counted_text(tokenizer: Any, num_tokens: int, variant: str = "") -> str:
    """Text of exactly `num_tokens` tokens, the same for the same `variant`."""
    words = _one_token_words(tokenizer)
    step = 1 + sum(variant.encode()) % (len(words) - 1)
    text = "".join(words[(i * step + i // len(words) + step) % len(words)] for i in range(num_tokens))
    assert len(tokenizer.encode(text, add_special_tokens=False)) == num_tokens
    return text


@cache
def _one_token_words(tokenizer: Any) -> list[str]:
    words = [f" {word}" for word in _WORDS]
    words = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False)) == 1]
    # A tokenizer without whole words: bytes.
    return words if len(words) > 2 else list("abcdefghijklm")


def _travel(name: str = "travel") -> str:
    return f"""<schema name="{name}">You are a travel guide. Answer shortly.
  <module name="plan">The traveller has <parameter name="duration" length="6"/> and likes the sea.
    <union name="destination">
      <module name="maldives">The Maldives are islands with white beaches and warm water.</module>
      <module name="alps">The Alps have snow.</module>
    </union>
    Keep it cheap.
  </module>
  <module name="food">Fish and rice are eaten everywhere.</module>
</schema>"""


_NESTED = """<schema name="nested">A report follows.
  <module name="outer">Outer starts here.
    <module name="first">The first inner part has some words.</module>
    Outer goes on in between.
    <module name="second">The second inner part is different.
      <module name="deep">Deep inside stands this.</module>
      And the second part ends.</module>
    Outer ends here.</module>
  The report is over.</schema>"""

_UNION = """<schema name="choice">Choose well.
  <union name="colour">
    <module name="red">Red is the colour of roses, of fire, and of old brick houses.</module>
    <module name="blue">Blue.</module>
  </union>
  After the choice comes this.
  <union>
    <module name="cat">Cats sleep a lot.</module>
    <module name="dog">Dogs run after balls the whole day long.</module>
  </union></schema>"""

_PARAMETER = """<schema name="mail">Write mail.
  <module name="letter">Dear <parameter name="who" length="8"/>, we meet at
    <parameter name="when" length="5" default="noon"/> sharp.</module></schema>"""

_EDGES = """<schema name="edges">Fill in.
  <module name="starts"><parameter name="a" length="6"/> is where it starts.</module>
  <module name="ends">It ends with <parameter name="b" length="6"/></module>
  <module name="only"><parameter name="c" length="6"/></module>
  <module name="pair"><parameter name="d" length="4"/><parameter name="e" length="4"/> pair</module>
</schema>"""

_SMALL = """<schema name="small">Letters follow.
  <module name="a">A</module>
  <module name="b">B, and</module>
  <module name="outer">outer <module name="inner">inner</module></module>
  <module name="c">C <parameter name="x" length="3"/> C</module>
  <module name="d">D</module>
  <union scaffold="one"><module name="one">1</module><module name="two">2 {40 tokens}</module></union>
  <module name="e">E {70 tokens: long}</module>
  <module name="f">F</module>
  <module name="g">G</module>
  The letters are over.</schema>"""

_SCAFFOLD = """<schema name="evidence">Read the evidence.
  <module name="question">Who built the tower in the harbour?</module>
  <module name="one">The tower was built by the same man as the bridge.</module>
  <module name="two">The bridge was built by Maria Sund in 1910.</module>
  <module name="three">It rained a lot that year.</module>
  Think before you answer.
  <scaffold modules="one two"/></schema>"""

_OVERLAP = _SCAFFOLD.replace(
    '<scaffold modules="one two"/>', '<scaffold modules="two three"/><scaffold modules="question one two"/>'
)

_STAND_IN = """<schema name="stand">Begin.
  <module name="trip">A trip with
    <union name="by" scaffold="train">
      <module name="plane">a plane, high above the clouds, and little luggage</module>
      <module name="train">a train that is slow</module>
    </union>
    takes <parameter name="days" length="3"/> days.</module>
  <module name="hotel">The hotel is near the station.</module>
  End.
  <scaffold modules="trip hotel"/></schema>"""

_DEEP_SCAFFOLD = """<schema name="deep">Rules.
  <module name="book">A book has chapters.
    <module name="one">Chapter one speaks of ships.
      <module name="note">A note on sails.</module></module>
    <module name="two">Chapter two speaks of storms.</module>
    The book ends.</module>
  <module name="index">Ships, storms.</module>
  <scaffold modules="index book/two book/one"/></schema>"""

_UNCACHED = """<schema name="today">Be brief.
  <module name="news" cache="false">It is <parameter name="weather" length="4" default="sunny"/> outside.
    <module name="detail">The wind comes from the north.</module>
    That was the news.</module>
  <module name="rule">Never mention politics.</module></schema>"""

_GAPS = """<schema name="gaps">Start.
  <module name="one">Module one is short.</module>
  <module name="left_out">{24 tokens}</module>
  <module name="two">Module two is short too.</module>
  The end of the schema.</schema>"""

_ROLES = """<schema name="chat"><system>You are a helpful pirate.
  <module name="ship">Your ship is the <parameter name="ship" length="4"/>.</module> Arr.</system>
  <module name="example"><user>Where is the gold?</user><assistant>Under the palm tree.</assistant></module>
</schema>"""

_BLOCKS = """<schema name="blocks">{5 tokens}
  <module name="a">{%d tokens}</module><module name="b">{%d tokens: b}</module></schema>"""

_CODE = """<schema name="code">Explain the code.
  <module name="file"><![CDATA[
def less(a, b):
    return a < b && "<tag/>"
]]></module></schema>"""

_SPACES = """<schema name="spaces">  Some   text  here.
  <module name="kept" space="preserve">  two  spaces

and lines  </module>
  <module name="joined" space="normalize">  two  spaces

and lines  </module>
  <module name="compact">  two  spaces  </module></schema>"""

_ONE_TOKEN = """<schema name="ones">{1 tokens}<module name="a">{1 tokens: a}</module>
  <module name="b">{1 tokens: b}</module><module name="c">{1 tokens: c}</module></schema>"""

_FORTY = (
    '<schema name="forty">Forty facts.'
    + "".join(
        f'<module name="m{i}">Fact {i} is about {{{i % 7 + 1} tokens: v{i}}}.</module>' for i in range(40)
    )
    + "</schema>"
)

_FAR = """<schema name="far">Here it starts.
  <module name="near">{20 tokens}</module>
  <union><module name="huge">{5000 tokens: h}</module><module name="tiny">A tiny one.</module></union>
  <module name="behind">Far behind the gap stands this.</module></schema>"""

_TEXT_ONLY = """<schema name="plain">There are no modules, only this text of the schema.</schema>"""

_NO_TEXT = """<schema name="bare"><module name="a">The schema has no text of its own.</module>
  <module name="b">Neither before nor after.</module></schema>"""

CASES: tuple[Case, ...] = (
    Case(
        "travel",
        _travel(),
        '<prompt schema="travel"><plan duration="three days"><destination><maldives/></destination></plan>'
        "<food/> Plan the first morning.</prompt>",
    ),
    Case(
        "nested-all",
        _NESTED,
        '<prompt schema="nested"><outer><first/><second><deep/></second></outer> Sum up.</prompt>',
    ),
    Case("nested-none", _NESTED, '<prompt schema="nested"><outer/> Sum up.</prompt>'),
    Case("nested-some", _NESTED, '<prompt schema="nested"><outer><second/></outer> Sum up.</prompt>'),
    Case(
        "nested-deep",
        _NESTED,
        '<prompt schema="nested"><outer><second><deep/></second></outer> Sum up.</prompt>',
    ),
    Case(
        "nested-outside", _NESTED, '<prompt schema="nested">Sum up.</prompt>', notes="only the schema's text"
    ),
    Case("union-element", _UNION, '<prompt schema="choice"><colour><red/></colour><dog/> Why?</prompt>'),
    Case("union-direct", _UNION, '<prompt schema="choice"><red/><cat/> Why?</prompt>'),
    Case("union-shorter-member", _UNION, '<prompt schema="choice"><blue/><cat/> Why?</prompt>'),
    Case("union-none", _UNION, '<prompt schema="choice"><colour/> Why?</prompt>'),
    Case(
        "union-nested",
        """<schema name="tree">Go.<union name="way"><module name="left">Left you find
        <union name="end"><module name="gold">gold, silver</module><module name="sand">sand</module></union>
        of course.</module><module name="right">Right is nothing.</module></union> Decide.</schema>""",
        '<prompt schema="tree"><way><left><end><sand/></end></left></way> What did you find?</prompt>',
    ),
    Case("order-is-free", _UNION, '<prompt schema="choice"><dog/><red/> Why?</prompt>'),
    Case(
        "parameter-short", _PARAMETER, '<prompt schema="mail"><letter who="Ann" when="two"/> Go on.</prompt>'
    ),
    Case(
        "parameter-full",
        _PARAMETER,
        '<prompt schema="mail"><letter who="{8 tokens}" when="{5 tokens}"/> Go on.</prompt>',
    ),
    Case(
        "parameter-missing",
        _PARAMETER,
        '<prompt schema="mail"><letter/> Go on.</prompt>',
        notes="a gap, a default",
    ),
    Case("parameter-empty", _PARAMETER, '<prompt schema="mail"><letter who="" when=""/> Go on.</prompt>'),
    Case("parameter-default", _PARAMETER, '<prompt schema="mail"><letter who="Ann Lee"/> Go on.</prompt>'),
    Case(
        "parameter-scaffold-text",
        """<schema name="fill">Note.<module name="m">He paid <parameter name="sum" length="6"
        scaffold="some money"/> for it, <parameter name="how" len="4" placeholder="none"/> he said.</module>
        </schema>""",
        '<prompt schema="fill"><m sum="ten coins" how="gladly"/> How much?</prompt>',
    ),
    Case(
        "parameter-at-edges",
        _EDGES,
        '<prompt schema="edges"><starts a="Here"/><ends b="there"/><only c="alone"/>'
        '<pair d="one" e="two"/> Yes?</prompt>',
    ),
    Case(
        "parameter-edges-missing",
        _EDGES,
        '<prompt schema="edges"><starts/><ends/><only/><pair e="two"/> Yes?</prompt>',
    ),
    Case(
        "parameter-last-new",
        _EDGES,
        '<prompt schema="edges"><ends b="the sea"/></prompt>',
        notes="ends in an argument",
    ),
    Case(
        "parameter-middle-new",
        _PARAMETER,
        '<prompt schema="mail"><letter who="Ann"/></prompt>',
        notes="ends in cached text",
    ),
    Case(
        "scaffold-whole", _SCAFFOLD, '<prompt schema="evidence"><question/><one/><two/><three/> Who?</prompt>'
    ),
    Case("scaffold-partly", _SCAFFOLD, '<prompt schema="evidence"><question/><one/> Who?</prompt>'),
    Case(
        "scaffold-overlapping",
        _OVERLAP,
        '<prompt schema="evidence"><question/><one/><two/><three/> Who?</prompt>',
    ),
    Case("scaffold-second-choice", _OVERLAP, '<prompt schema="evidence"><two/><three/> Who?</prompt>'),
    Case(
        "scaffold-nested",
        _DEEP_SCAFFOLD,
        '<prompt schema="deep"><book><one><note/></one><two/></book><index/> Go.</prompt>',
    ),
    Case(
        "scaffold-gap", _DEEP_SCAFFOLD, '<prompt schema="deep"><book><one/><two/></book><index/> Go.</prompt>'
    ),
    Case(
        "stand-in-chosen",
        _STAND_IN,
        '<prompt schema="stand"><trip days="two"><train/></trip><hotel/> Book it.</prompt>',
    ),
    Case(
        "stand-in-other",
        _STAND_IN,
        '<prompt schema="stand"><trip days="two"><plane/></trip><hotel/> Book it.</prompt>',
    ),
    Case("stand-in-none", _STAND_IN, '<prompt schema="stand"><trip days="two"/><hotel/> Book it.</prompt>'),
    Case(
        "stand-in-alone",
        _STAND_IN,
        '<prompt schema="stand"><trip><train/></trip> Book it.</prompt>',
        notes="no scaffold",
    ),
    Case(
        "uncached",
        _UNCACHED,
        '<prompt schema="today"><news weather="grey"><detail/></news><rule/> So?</prompt>',
    ),
    Case("uncached-default", _UNCACHED, '<prompt schema="today"><rule/><news/> So?</prompt>'),
    Case("uncached-not-included", _UNCACHED, '<prompt schema="today"><rule/> So?</prompt>'),
    Case(
        "uncached-last",
        '<schema name="last">Start.<module name="m">Cached.</module>'
        '<module name="n" cache="false">Not so.</module></schema>',
        '<prompt schema="last"><m/><n/></prompt>',
    ),
    Case("text-in-gap", _GAPS, '<prompt schema="gaps"><one/>{20 tokens}<two/> Go on.</prompt>'),
    Case("text-fills-gap", _GAPS, '<prompt schema="gaps"><one/>{24 tokens: x}<two/> Go on.</prompt>'),
    Case("text-first", _GAPS, '<prompt schema="gaps">ok<two/> Go on.</prompt>'),
    Case(
        "text-inside-module",
        """<schema name="form">Form.<module name="box">Box: <module name="hint">{12 tokens}</module>
        <module name="rule">Use ink.</module></module> Done.</schema>""",
        '<prompt schema="form"><box>Some text<rule/></box> Check it.</prompt>',
    ),
    Case("text-after-schema-end", _GAPS, '<prompt schema="gaps"><one/> Go <!-- not here --> on.</prompt>'),
    Case(
        "roles-in-schema",
        _ROLES,
        '<prompt schema="chat"><ship ship="Flea"/><user>Ahoy!</user></prompt>',
        needs_roles=True,
    ),
    Case(
        "roles-conversation",
        _ROLES,
        '<prompt schema="chat"><example/><user>Ahoy!</user><assistant>Arr!</assistant>'
        "<user>Bye.</user></prompt>",
        needs_roles=True,
    ),
    Case(
        "roles-in-prompt", _GAPS, '<prompt schema="gaps"><one/><user>Go on.</user></prompt>', needs_roles=True
    ),
    Case("roles-nothing-new", _ROLES, '<prompt schema="chat"><ship/><example/></prompt>', needs_roles=True),
    Case("one-token-modules", _ONE_TOKEN, '<prompt schema="ones"><a/><b/><c/>{1 tokens: d}</prompt>'),
    Case("one-token-nothing-new", _ONE_TOKEN, '<prompt schema="ones"><a/><c/></prompt>'),
    *(
        Case(f"blocks-{n}", _BLOCKS % (n, m), '<prompt schema="blocks"><a/><b/>{3 tokens: q}</prompt>')
        for n, m in (
            (31, 33),
            (32, 32),
            (33, 31),
            (63, 65),
            (64, 64),
            (65, 63),
            (127, 129),
            (128, 128),
            (129, 127),
        )
    ),
    Case(
        "blocks-nothing-new",
        _BLOCKS % (64, 128),
        '<prompt schema="blocks"><a/><b/></prompt>',
        notes="last: whole blocks",
    ),
    Case("blocks-one-only", _BLOCKS % (256, 3), '<prompt schema="blocks"><a/>{3 tokens: q}</prompt>'),
    Case(
        "forty-modules",
        _FORTY,
        '<prompt schema="forty">' + "".join(f"<m{i}/>" for i in range(40)) + " Which fact is best?</prompt>",
    ),
    Case(
        "twenty-of-forty",
        _FORTY,
        '<prompt schema="forty">'
        + "".join(f"<m{i}/>" for i in range(39, 0, -2))
        + " Which fact is best?</prompt>",
    ),
    Case(
        "small-modules",
        _SMALL,
        '<prompt schema="small"><a/><b/><outer><inner/></outer><c x="yes"/><d/><two/><e/><f/> And?</prompt>',
        notes="in sequence a to inner, and d and e, are computed together",
    ),
    Case(
        "small-modules-left-out",
        _SMALL,
        '<prompt schema="small"><b/><c x="yes"/><one/><f/><g/> And?</prompt>',
    ),
    Case("gap-of-thousands", _FAR, '<prompt schema="far"><near/><tiny/><behind/> And now?</prompt>'),
    Case("gap-without-member", _FAR, '<prompt schema="far"><behind/> And now?</prompt>'),
    Case("nothing-new", _NESTED, '<prompt schema="nested"><outer><first/></outer></prompt>'),
    Case("schema-text-only", _TEXT_ONLY, '<prompt schema="plain"/>'),
    Case("schema-text-and-new", _TEXT_ONLY, '<prompt schema="plain">Tell me more.</prompt>'),
    Case("schema-without-text", _NO_TEXT, '<prompt schema="bare"><b/> Go.</prompt>'),
    Case("only-new-text", _NO_TEXT, '<prompt schema="bare">Nothing is included.</prompt>'),
    Case("code-in-cdata", _CODE, '<prompt schema="code"><file/> <![CDATA[ if a < b: pass ]]></prompt>'),
    Case("spaces", _SPACES, '<prompt schema="spaces"><kept/><joined/><compact/> How  many?</prompt>'),
    Case(
        "lines-left-out",
        """<schema name="lines">
          Sources:
          <module name="report 2024.pdf">
            Eleven boats were sold:
              - five in March,
              - six in May.
          </module>
          <module name="left out">It rained.</module>
          <module name="资料">Prices
            <union>
              <module name="high">are high</module>
              <module name="low">are low, and fall</module>
            </union>
            for <parameter name="whom" length="8"/>.</module>

          Answer from the sources.
        </schema>""",
        """<prompt schema="lines">
          <use module="report 2024.pdf"/>
          <资料><high/><argument name="whom">us all</argument></资料>
          Who buys boats?
        </prompt>""",
        notes="names of any kind; white space goes with what is left out",
    ),
    Case(
        "other-scripts",
        '<schema name="world">Übersetze ins Deutsche: '
        '<module name="m">日本語の文章です。 Привет 👋&#x1F30D;</module></schema>',
        '<prompt schema="world"><m/> そして?</prompt>',
    ),
)

CASES_BY_NAME = {case.name: case for case in CASES}
