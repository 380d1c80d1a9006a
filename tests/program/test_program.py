"""Prompt programs: functions to schemas, arguments to prompts."""

# ruff: noqa: B021, E501 (f-strings that stand alone are what a prompt program is made of)

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from tests.byte_tokenizer import CHATML, byte_tokenizer, plan_text
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.program import assistant, compile_program, prompt_for, system, user


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


LIMIT = 3


def conditions(n=0, flag=False, name="x"):
    if n > LIMIT and not flag:
        "many"
    if not flag:
        "no flag"
    else:
        "flag"
    if flag:
        "again"
    if name.startswith("A"):
        "an A"
    elif len(name) > 3:
        "long"
    else:
        "short"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "no flag\nshort\n"),
        ({"n": 4, "name": "Ann"}, "many\nno flag\nan A\n"),
        ({"n": 4, "flag": True, "name": "long"}, "flag\nagain\nlong\n"),
    ],
)
def test_a_condition_of_any_kind_is_a_module(arguments: dict[str, Any], text: str) -> None:
    assert composed(conditions, **arguments) == text


def cases(kind=1, n=0):
    match kind:
        case 1:
            "one"
        case -2.5:
            "minus"
        case "a" | "b":
            "a or b"
        case None:
            "none"
        case True:
            "true"
        case "" | " ":
            "empty"
        case "x y" if n > 1:
            "x y, more"
        case "x y":
            "x y"
        case [first, *_] if first == n:
            "a list"
        case _:
            "other"
    match n:
        case 1:
            "1"
        case 2:
            "2"


@pytest.mark.parametrize(
    ("kind", "n", "text"),
    [
        (1, 1, "one\n1\n"),
        (-2.5, 0, "minus\n"),
        ("b", 2, "a or b\n2\n"),
        (None, 0, "none\n"),
        ("", 0, "empty\n"),
        ("x y", 2, "x y, more\n2\n"),
        ("x y", 0, "x y\n"),
        ([5, 6], 5, "a list\n"),
        ({}, 0, "other\n"),
    ],
)
def test_a_case_is_any_pattern(kind: Any, n: int, text: str) -> None:
    assert composed(cases, kind=kind, n=n) == text


def test_cases_are_named_as_they_are_written() -> None:
    first, second = parse_document(compile_program(cases)).schemas[0].children
    assert [first.name, second.name] == ["kind", "n"]  # type: ignore[union-attr]
    assert [member.name for member in first.members] == [  # type: ignore[union-attr]
        *("1", "-2.5", "'a' | 'b'", "None", "True", "'' | ' '", "x y if n > 1", "x y"),
        *("[first, *_] if first == n", "otherwise"),
    ]
    assert [member.name for member in second.members] == ["1_2", "2"]  # type: ignore[union-attr]


def twice(days="x", name="Ann"):
    f"{days:3} days are {days:3} days"
    f"{days:3} days"
    visa("Nepal", days=days + "!")
    visa(name)
    if name:
        f"{days:3} and {days:3}"
        f"or {days:3}"
    if name:
        "Again."


def test_what_is_there_twice_has_a_number() -> None:
    assert composed(twice, days="2") == (
        "2 days are 2 days\n2 days\nA visa for Nepal lasts 2! days.\nA visa for Ann lasts many days.\n"
        "2 and 2\nor 2\nAgain.\n"
    )
    assert prompt_for(twice, days="2") == (
        '<prompt schema="twice"><days days="2" days_2="2"/><days_2 days="2"/><visa country="Nepal" days="2!"/>'
        '<visa_2 country="Ann" days="many"/><name days="2" days_2="2" days_3="2"/><name_2/></prompt>'
    )


def conversation(topic="boats", short=True):
    with system():
        "You know everything."
        if short:
            "Be short."
    with user():
        f"What of {topic:5}?"
    with assistant():
        "Much."


def test_messages() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    (schema,) = parse_document(compile_program(conversation)).schemas
    prompt = parse_document(prompt_for(conversation, topic="ships")).prompt
    assert prompt is not None
    assert plan_text(build_plan(build_layout(schema, tokenizer, 4096), prompt), tokenizer) == (
        "<|im_start|>system\nYou know everything.\nBe short.\n<|im_end|>\n"
        "<|im_start|>user\nWhat of ships?\n<|im_end|>\n<|im_start|>assistant\nMuch.\n<|im_end|>\n"
    )
    assert conversation() is None  # type: ignore[func-returns-value]


class Dedented:
    @staticmethod
    def texts() -> None:
        """First line,
        second line,
            indented.
        """
        """
No indentation at all,
  but here.
"""
        "one and the same"


def test_strings_of_several_lines_are_dedented_wherever_they_stand() -> None:
    assert composed(Dedented.texts) == (
        "First line,\nsecond line,\n    indented.\nNo indentation at all,\n  but here.\none and the same\n"
    )


def prompt(function: Callable[..., Any]) -> Callable[..., Any]:
    """As the decorator of the original Prompt Cache: it runs another function."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> str:
        return "builder"

    return wrapper


@prompt
def travel(place, overseas=True, length=3):
    """
    You are a travel planner.
    """
    if overseas:
        """
        The trip goes overseas.
        """
    if length > 7:
        "It is a long one."
    match place:
        case "miami":
            "Miami has beaches."
        case "maldives":
            "The Maldives are islands."


def test_programs_of_the_original_compile() -> None:
    assert composed(travel, place="maldives", length=9) == (
        "You are a travel planner.\nThe trip goes overseas.\nIt is a long one.\nThe Maldives are islands.\n"
    )


def test_long_conditions_have_short_names() -> None:
    def long(a="x"):
        if a in (
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "13",
            "14",
        ):
            "a"
        if a in (
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "13",
            "15",
        ):
            "b"

    assert composed(long, a="14") == "a\n"
    assert composed(long, a="13") == "a\nb\n"


# What is refused


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


def unknown_name(a):
    if a > nowhere:  # type: ignore[name-defined]  # noqa: F821
        "x"


def unknown_in_case(a):
    match a:
        case "x" if nowhere:  # type: ignore[name-defined]  # noqa: F821
            "x"


def other_with():
    with open("x"):
        "x"


def unknown_call():
    nowhere()  # type: ignore[name-defined]  # noqa: F821


def method_call():
    "x".strip()


def wrong_arguments():
    visa()  # type: ignore[call-arg]


def recursive():
    "x"
    recursive()


def star(*names):
    "x"


def control_character():
    "\x01"


REFUSED = {
    loops: "1: a prompt program holds strings, if, match, with system(), and calls of other prompt programs",
    returns: "1: a prompt program holds strings, if, match, with system(), and calls of other prompt programs",
    no_length: "1: a field needs its length in tokens: {name:12} for at most 12",
    zero_length: "1: a field needs its length in tokens: {name:12} for at most 12",
    converted: "1: a field needs its length in tokens: {name:12} for at most 12",
    not_a_parameter: "1: a field is a parameter of the function, not 'inspect'",
    expression: "1: a field is a parameter of the function, not \"name + 'x'\"",
    unknown_name: "1: 'nowhere' is neither a parameter of the function nor anything it sees",
    unknown_in_case: "1: 'nowhere' is neither a parameter of the function nor anything it sees",
    other_with: "1: 'with' is for messages: with system(), with user(), with assistant()",
    unknown_call: "1: 'nowhere' is not a prompt program",
    method_call: "1: a prompt program holds strings, if, match, with system(), and calls of other prompt programs",
    wrong_arguments: "1: visa: missing a required argument: 'country'",
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
