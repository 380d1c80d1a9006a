"""Cases whose modules span several blocks, so that what they test meets block boundaries."""

from tests.cases import Case

_LONG = """<schema name="long">{70 tokens: r}
  <module name="guide">{130 tokens: g}<parameter name="who" length="40"/>{33 tokens: h}
    <module name="inner">{64 tokens: i}</module>
    <union><module name="left">{129 tokens: l}</module><module name="right">{31 tokens: m}</module></union>
    {95 tokens: j}<parameter name="end" length="20" default="{20 tokens: e}"/></module>
  <module name="skipped">{200 tokens: t}</module>
  {64 tokens: s}
  <module name="today" cache="false">{40 tokens: u}</module>
  <module name="last">{128 tokens: v}</module>
  {66 tokens: w}</schema>"""

_STAND_IN = """<schema name="stand">{10 tokens}
  <module name="trip">{150 tokens: a}
    <union scaffold="train">
      <module name="plane">{97 tokens: b}</module>
      <module name="train">{140 tokens: c}</module>
    </union>
    {45 tokens: d}<parameter name="days" length="30"/>{100 tokens: e}</module>
  <module name="hotel">{90 tokens: f}</module>
  {20 tokens: g}
  <scaffold modules="trip hotel"/></schema>"""

_DEEP = """<schema name="deep">{40 tokens}
  <module name="book">{100 tokens: a}
    <module name="one">{70 tokens: b}<module name="note">{80 tokens: c}</module>{65 tokens: d}</module>
    <module name="two">{130 tokens: e}</module>
    {33 tokens: f}</module>
  <module name="index">{129 tokens: g}</module>
  <scaffold modules="index book/two book/one"/></schema>"""

_MANY = (
    '<schema name="many">{37 tokens}'
    + "".join(
        f'<module name="m{i}">{{{20 + 17 * i % 90} tokens: v{i}}}<parameter name="p" length="9"/></module>'
        for i in range(12)
    )
    + "</schema>"
)
_ARGUMENTS = "".join(f'<m{i} p="{{{1 + i % 9} tokens: a{i}}}"/>' for i in range(12) if i != 5)

LONG_CASES: tuple[Case, ...] = (
    Case(
        "long-everything",
        _LONG,
        """<prompt schema="long"><guide who="{40 tokens: x}" end="{7 tokens: y}"><inner/><left/></guide>
        {150 tokens: z}<today/><last/> {50 tokens: q}</prompt>""",
    ),
    Case(
        "long-some",
        _LONG,
        """<prompt schema="long"><guide who="{3 tokens: x}"><right/></guide><skipped/>
        {100 tokens: q}</prompt>""",
    ),
    Case("long-nothing-new", _LONG, '<prompt schema="long"><guide/><last/></prompt>'),
    Case(
        "long-text-inside",
        _LONG,
        '<prompt schema="long"><guide>{64 tokens: x}<left/></guide><last/></prompt>',
    ),
    Case("long-only-new", _LONG, '<prompt schema="long">{300 tokens: q}</prompt>'),
    Case(
        "long-stand-in-chosen",
        _STAND_IN,
        '<prompt schema="stand"><trip days="{9 tokens: x}"><train/></trip><hotel/>{5 tokens: q}</prompt>',
    ),
    Case(
        "long-stand-in-other",
        _STAND_IN,
        '<prompt schema="stand"><trip days="{30 tokens: x}"><plane/></trip><hotel/>{5 tokens: q}</prompt>',
    ),
    Case("long-stand-in-none", _STAND_IN, '<prompt schema="stand"><trip/><hotel/>{5 tokens: q}</prompt>'),
    Case(
        "long-scaffold-nested",
        _DEEP,
        '<prompt schema="deep"><book><one><note/></one><two/></book><index/>{5 tokens: q}</prompt>',
    ),
    Case(
        "long-scaffold-gap",
        _DEEP,
        '<prompt schema="deep"><book><one/><two/></book><index/>{5 tokens: q}</prompt>',
    ),
    Case(
        "long-scaffold-not-used",
        _DEEP,
        '<prompt schema="deep"><book><one><note/></one></book><index/>{70 tokens: q}</prompt>',
    ),
    Case("many-rows", _MANY, f'<prompt schema="many">{_ARGUMENTS}{{33 tokens: q}}</prompt>'),
)
