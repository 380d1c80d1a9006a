"""Prompt programs to PML, and arguments to prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from lxml import etree

from vllm_promptcache.errors import PMLError, PMLIssue
from vllm_promptcache.pml.attributes import RESERVED_NAMES
from vllm_promptcache.pml.parser import parse_document
from vllm_promptcache.pml.space import PRESERVE
from vllm_promptcache.program.reader import read_program
from vllm_promptcache.program.steps import Arguments, Choice, Field, Message, Module, Step, Text

# Built with lxml rather than as strings: it escapes, and refuses characters that XML cannot hold.
Element = etree._Element


def compile_program(function: Callable[..., Any], name: str | None = None) -> str:
    """The schema of a prompt program, named after the function unless `name` says otherwise.

    Raises PMLError, at the line of the source, for what a prompt program cannot hold.
    """
    name = name or function.__name__
    schema = etree.Element("schema", name=name, space=PRESERVE)
    try:
        _write_steps(schema, read_program(function))
    except ValueError as error:
        raise _at(function, error) from None
    text = etree.tostring(schema, encoding="unicode")
    # A last look through the language's own eyes.
    try:
        parse_document(text)
    except PMLError as error:
        raise PMLError([_issue(function, issue.what) for issue in error.issues]) from None
    return text


def prompt_for(function: Callable[..., Any], name: str | None = None, /, **arguments: Any) -> str:
    """The prompt that includes what the program would say with these arguments.

    `name` is the schema's, if it is not the function's. An argument of None leaves its parameter to the
    default. Raises TypeError for arguments that the function does not take, and PMLError as
    `compile_program`.
    """
    bound = inspect.signature(function).bind(**arguments)
    bound.apply_defaults()
    prompt = etree.Element("prompt", schema=name or function.__name__)
    try:
        _include_steps(prompt, read_program(function), bound.arguments)
    except ValueError as error:
        raise _at(function, error) from None
    return etree.tostring(prompt, encoding="unicode")


def _at(function: Callable[..., Any], error: ValueError) -> PMLError:
    if isinstance(error, PMLError):
        return error
    return PMLError([_issue(function, f"text that XML cannot hold: {error}")])


def _issue(function: Callable[..., Any], what: str) -> PMLIssue:
    """An issue of the function as a whole."""
    function = inspect.unwrap(function)
    line = inspect.getsourcelines(function)[1]
    where = inspect.getsourcefile(function) or "<source>"
    return PMLIssue(where, line, 1, function.__name__, what)


# The schema


def _write_steps(parent: Element, steps: Sequence[Step]) -> None:
    for step in steps:
        if isinstance(step, Text):
            _write_text(parent, step)
        elif isinstance(step, Module):
            _write_module(parent, step)
        elif isinstance(step, Message):
            _write_steps(etree.SubElement(parent, step.role), step.steps)
        else:
            union = etree.SubElement(parent, "union", {"name": step.name} if step.name else {})
            for module in step.modules:
                _write_module(union, module)


def _write_module(parent: Element, module: Module) -> None:
    _write_steps(etree.SubElement(parent, "module", name=module.name), module.steps)


def _write_text(parent: Element, text: Text) -> None:
    for part in text.parts:
        if isinstance(part, Field):
            _write_field(parent, part)
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + part
        else:
            parent.text = (parent.text or "") + part


def _write_field(parent: Element, field: Field) -> None:
    element = etree.SubElement(parent, "parameter", name=field.name, length=str(field.length))
    if field.required:
        element.set("required", "true")
    elif field.default is not None:
        element.set("default", field.default)


# The prompt


def _include_steps(parent: Element, steps: Sequence[Step], arguments: Arguments) -> None:
    for step in steps:
        if isinstance(step, Text):
            _set_arguments(parent, step, arguments)
        elif isinstance(step, Module):
            _include(parent, step, arguments)
        elif isinstance(step, Message):
            _include_steps(parent, step.steps, arguments)
        else:
            _choose(parent, step, arguments)


def _set_arguments(parent: Element, text: Text, arguments: Arguments) -> None:
    for field in text.fields:
        value = arguments[field.argument]
        if value is None:
            continue
        if field.name in ("module", "space"):
            # Attributes of these names say something else.
            etree.SubElement(parent, "argument", name=field.name, space=PRESERVE).text = str(value)
        else:
            parent.set(field.name, str(value))


def _include(parent: Element, module: Module, arguments: Arguments) -> bool:
    if not module.applies(arguments):
        return False
    is_tag = module.name.isidentifier() and module.name not in RESERVED_NAMES
    element = etree.SubElement(parent, module.name if is_tag else "use")
    if not is_tag:
        element.set("module", module.name)
    _include_steps(element, module.steps, module.bind(arguments))
    return True


def _choose(parent: Element, choice: Choice, arguments: Arguments) -> None:
    for module in choice.modules:
        if _include(parent, module, arguments):
            return
