"""Prompt programs: functions to schemas, arguments to prompts."""

# ruff: noqa: B021, E501 (f-strings that stand alone are what a prompt program is made of)

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from tests.byte_tokenizer import byte_tokenizer, plan_text
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.program import compile_program, prompt_for


def visa(country: str, days: str = "many"):
    f"A visa for {country:10} lasts {days:8} days."


def guide(days="three", overseas=False, city="paris"):
    "You are a travel guide."
    f"The trip takes {days:6} days."
    if overseas:
        "Mention visas."
        visa("Nepal", days=days)
    match city:
        case "paris":
            "Paris lies on the Seine."
        case "rome":
            "Rome lies on seven hills."
        case _:
            pass


def composed(program: Callable[..., Any], **arguments: Any) -> str:
    """The text of the whole prompt that a program and its arguments make."""
    (schema,) = parse_document(compile_program(program)).schemas
    prompt = parse_document(prompt_for(program, **arguments)).prompt
    assert prompt is not None
    return plan_text(build_plan(build_layout(schema, byte_tokenizer(), 4096), prompt), byte_tokenizer())


def test_a_program_compiles_to_a_schema() -> None:
    assert compile_program(guide) == (
        '<schema name="guide" space="preserve">You are a travel guide.\n'
        '<module name="days">The trip takes <parameter name="days" length="6" default="three"/> days.\n</module>'
        '<module name="overseas">Mention visas.\n'
        '<module name="visa">A visa for <parameter name="country" length="10" required="true"/>'
        ' lasts <parameter name="days" length="8" default="many"/> days.\n</module></module>'
        '<union name="city"><module name="paris">Paris lies on the Seine.\n</module>'
        '<module name="rome">Rome lies on seven hills.\n</module><module name="otherwise"/></union></schema>'
    )


def test_arguments_make_a_prompt() -> None:
    assert prompt_for(guide, days="two", overseas=True, city="rome") == (
        '<prompt schema="guide"><days days="two"/><overseas><visa country="Nepal" days="two"/></overseas>'
        "<rome/></prompt>"
    )
    assert prompt_for(guide) == '<prompt schema="guide"><days days="three"/><paris/></prompt>'
    assert prompt_for(guide, city="oslo", days=None) == '<prompt schema="guide"><days/><otherwise/></prompt>'
    assert prompt_for(guide, "other").startswith('<prompt schema="other"><days')
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        prompt_for(guide, day="two")


def test_the_prompt_reads_as_the_program_says() -> None:
    assert composed(guide, days="two", overseas=True) == (
        "You are a travel guide.\nThe trip takes two days.\nMention visas.\n"
        "A visa for Nepal lasts two days.\nParis lies on the Seine.\n"
    )


def branching(a=False, b=False, c=False):
    if a:
        "A"
    elif b:
        "B"
    else:
        "neither"
    if c:
        "C"
    else:
        "no C"


@pytest.mark.parametrize(
    ("flags", "text"), [("", "neither\nno C\n"), ("a", "A\nno C\n"), ("b", "B\nno C\n"), ("abc", "A\nC\n")]
)
def test_branches_are_members_of_a_union(flags: str, text: str) -> None:
    assert composed(branching, **dict.fromkeys(flags, True)) == text
    unions = parse_document(compile_program(branching)).schemas[0].children
    assert [[member.name for member in union.members] for union in unions] == [  # type: ignore[union-attr]
        ["a", "b", "not_a_or_b"],
        ["c", "not_c"],
    ]


def texts():
    """The first string is text like any other."""
    "<b> & \"quotes\" & 'more' ]]>"
    """
    Dedented,
        inner indentation kept,
    as a whole.
    """
    "tab\tand  spaces  "
    ""


def test_text_is_kept_as_it_is() -> None:
    assert composed(texts) == (
        "The first string is text like any other.\n<b> & \"quotes\" & 'more' ]]>\n"
        "Dedented,\n    inner indentation kept,\nas a whole.\ntab\tand  spaces  \n"
    )


def dedented_fields(name: str, place="here"):
    f"""
    Dear {name:8},
      we meet {place:4}.
    """


def test_text_with_fields_is_dedented_as_a_whole() -> None:
    assert composed(dedented_fields, name="Ann") == "Dear Ann,\n  we meet here.\n"


def decorated_with(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@decorated_with
def decorated(flag=True):
    if flag:
        "yes"


def test_decorated_functions_and_closures() -> None:
    def inner(word: str):
        f"The word is {word:9}."

    def outer(word="hello"):
        inner(word=word)

    assert composed(outer) == "The word is hello.\n"
    assert composed(decorated) == "yes\n"
    assert compile_program(outer, "renamed").startswith('<schema name="renamed"')


def any_names(user=False, kind="none", space="here"):
    f"There is {space:9}."
    if user:
        "U"
    match kind:
        case "two words":
            "two"
        case "a/b":
            "ab"


def test_names_need_not_be_names_of_xml() -> None:
    there = "There is {}.\n"
    assert composed(any_names, user=True, kind="two words", space=" x") == there.format(" x") + "U\ntwo\n"
    assert composed(any_names, kind="a/b") == there.format("here") + "ab\n"


# What is refused


def same_field(days="x"):
    f"{days:3} days are {days:3} days"


def same_field_in_a_branch(flag, days="x"):
    if flag:
        f"{days:3} days"
        f"are {days:3} days"


def loops(n):
    for _ in n:
        "again"


def returns():
    return "text"


def no_length(name):
    f"Dear {name}"


def zero_length(name):
    f"Dear {name:0}"


def converted(name):
    f"Dear {name!r:5}"


def not_a_parameter():
    f"Dear {inspect:5}"


def expression(name):
    f"Dear {name + 'x':5}"


def condition(a, b):
    if a and b:
        "both"


def guarded(a, b):
    match a:
        case "x" if b:
            "x"


def pattern(a):
    match a:
        case "x" | "y":
            "x"


def twice():
    branching()
    branching()


def field_and_flag(name):
    f"Dear {name:3}"
    if name:
        "x"


def unknown_call():
    nowhere()  # type: ignore[name-defined]  # noqa: F821


def method_call():
    "x".strip()


def wrong_arguments():
    visa()  # type: ignore[call-arg]


def computed_argument(a):
    visa(a + "x")


def recursive():
    "x"
    recursive()


def star(*names):
    "x"


def control_character():
    "\x01"


REFUSED = {
    loops: "1: a prompt program holds strings, if, match, and calls of other prompt programs",
    returns: "1: a prompt program holds strings, if, match, and calls of other prompt programs",
    no_length: "1: a field needs its length in tokens: {name:12} for at most 12",
    zero_length: "1: a field needs its length in tokens: {name:12} for at most 12",
    converted: "1: a field needs its length in tokens: {name:12} for at most 12",
    not_a_parameter: "1: a field is a parameter of the function, not 'inspect'",
    expression: "1: a field is a parameter of the function, not \"name + 'x'\"",
    condition: "1: a condition is a parameter of the function, not 'a and b'",
    guarded: "2: a case of a prompt program has no condition",
    pattern: '2: a case of a prompt program is a name in quotes, or "_"',
    twice: "2: the name 'branching' is taken by another module next to it",
    field_and_flag: "2: the name 'name' is taken by another module next to it",
    same_field: "1: the field 'days' is there already: a module has it once",
    same_field_in_a_branch: "3: the field 'days' is there already: a module has it once",
    unknown_call: "1: 'nowhere' is not a prompt program",
    method_call: "1: a prompt program holds strings, if, match, and calls of other prompt programs",
    wrong_arguments: "1: visa: missing a required argument: 'country'",
    computed_argument: "1: an argument is a parameter of the function, not \"a + 'x'\"",
    recursive: "2: 'recursive' calls itself, so its schema would have no end",
    star: "0: a prompt program cannot take '*names'",
}


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.__name__)
def test_what_a_program_cannot_hold(program: Callable[..., Any]) -> None:
    with pytest.raises(PMLError) as caught:
        compile_program(program)
    (issue,) = caught.value.issues
    first_line = inspect.getsourcelines(program)[1]
    assert f"{issue.line - first_line}: {issue.what}" == REFUSED[program]
    assert issue.where == __file__
    assert issue.path == program.__name__


@pytest.mark.parametrize("program", [len, eval("lambda: 'x'")])
def test_functions_without_source(program: Callable[..., Any]) -> None:
    with pytest.raises(PMLError, match="whose Python source can be read"):
        compile_program(program)


def test_characters_that_xml_cannot_hold() -> None:
    with pytest.raises(PMLError, match="control_character: text that XML cannot hold"):
        compile_program(control_character)
    with pytest.raises(PMLError, match="dedented_fields: text that XML cannot hold"):
        prompt_for(dedented_fields, name="\x00")
