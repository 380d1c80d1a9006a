"""A function's source to steps, with errors at the source's own lines."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vllm_promptcache.errors import PMLError, PMLIssue, quote
from vllm_promptcache.pml.attributes import name_problem
from vllm_promptcache.program.steps import Arguments, Choice, Field, Module, Step, Text

_HOLDS = "a prompt program holds strings, if, match, and calls of other prompt programs"


def read_program(
    function: Callable[..., Any], callers: Sequence[Callable[..., Any]] = ()
) -> tuple[Step, ...]:
    """The steps of a prompt program; `callers` are the programs on the way to it, outermost first.

    Raises PMLError, at the line of the source, for what a prompt program cannot hold.
    """
    return _Reader(inspect.unwrap(function), callers).read()


class _Reader:
    def __init__(self, function: Callable[..., Any], callers: Sequence[Callable[..., Any]]) -> None:
        self._function = function
        self._callers = [*callers, function]
        try:
            self._where = inspect.getsourcefile(function) or "<source>"
            lines, first_line = inspect.getsourcelines(function)
        except (TypeError, OSError):
            name = getattr(function, "__name__", "program")
            what = "a prompt program is a function whose Python source can be read"
            raise PMLError([PMLIssue("<source>", 1, 1, name, what)]) from None
        source = "".join(lines)
        dedented = textwrap.dedent(source)
        self._first_line = max(first_line, 1)
        self._indent = len(source) - len(source.lstrip()) - (len(dedented) - len(dedented.lstrip()))
        (self._tree,) = ast.parse(dedented).body
        self._parameters = inspect.signature(function).parameters
        for parameter in self._parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._fail(self._tree, f"a prompt program cannot take {str(parameter)!r}")

    def read(self) -> tuple[Step, ...]:
        if not isinstance(self._tree, ast.FunctionDef):
            self._fail(self._tree, "a prompt program is a plain function")
        return self._steps(self._tree.body, in_schema=len(self._callers) == 1)

    def _steps(self, body: Sequence[ast.stmt], in_schema: bool = False) -> tuple[Step, ...]:
        steps: list[Step] = []
        taken: set[str] = set()
        fields: set[str] = set()
        for statement in body:
            step = self._step(statement)
            if isinstance(step, Text):
                # In a schema, each text with fields is a module of its own.
                self._check_fields(statement, step, set() if in_schema else fields)
            if in_schema and isinstance(step, Text) and step.fields:
                # Parameters cannot stand directly in a schema.
                step = Module(step.fields[0].name, (step,), _always, _same)
            for name in _names(step):
                if name in taken:
                    self._fail(statement, f"the name {quote(name)} is taken by another module next to it")
                taken.add(name)
            if step is not None:
                steps.append(step)
        return tuple(steps)

    def _check_fields(self, statement: ast.stmt, text: Text, taken: set[str]) -> None:
        for field in text.fields:
            if field.name in taken:
                self._fail(statement, f"the field {quote(field.name)} is there already: a module has it once")
            taken.add(field.name)

    def _step(self, statement: ast.stmt) -> Step | None:
        if isinstance(statement, ast.Pass):
            return None
        if isinstance(statement, ast.If):
            return self._if(statement)
        if isinstance(statement, ast.Match):
            return self._match(statement)
        if isinstance(statement, ast.Expr):
            value = statement.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return self._text(value, [value])
            if isinstance(value, ast.JoinedStr):
                return self._text(value, value.values)
            if isinstance(value, ast.Call):
                return self._call(value)
        return self._fail(statement, _HOLDS)

    # Text

    def _text(self, node: ast.expr, values: Sequence[ast.expr]) -> Text | None:
        """Text is dedented as a whole, so fields stand in it as a character that no text can hold."""
        fields: list[Field] = []
        text = ""
        for value in values:
            if isinstance(value, ast.FormattedValue):
                fields.append(self._field(value))
                text += "\0"
            else:
                assert isinstance(value, ast.Constant), "an f-string holds text and fields"
                assert isinstance(value.value, str), "text is a string"
                if "\0" in value.value:
                    self._fail(node, "text cannot hold a NUL character")
                text += value.value
        pieces = _as_line(text).split("\0")
        parts: list[str | Field] = [pieces[0]]
        for field, piece in zip(fields, pieces[1:], strict=True):
            parts += [field, piece]
        parts = [part for part in parts if part != ""]
        return Text(tuple(parts)) if parts else None

    def _field(self, node: ast.FormattedValue) -> Field:
        name = self._parameter_name(node.value, "a field")
        length = node.format_spec
        spec = ast.unparse(length).strip("f'") if isinstance(length, ast.JoinedStr) else ""
        if not spec.isdecimal() or int(spec) == 0 or node.conversion != -1:
            self._fail(node, f"a field needs its length in tokens: {{{name}:12}} for at most 12")
        default = self._parameters[name].default
        required = default is inspect.Parameter.empty
        return Field(name, int(spec), None if required or default is None else str(default), required)

    def _parameter_name(self, node: ast.expr, what: str) -> str:
        if not isinstance(node, ast.Name) or node.id not in self._parameters:
            self._fail(node, f"{what} is a parameter of the function, not {ast.unparse(node)!r}")
        self._check_name(node, node.id)
        return node.id

    def _check_name(self, node: ast.AST, name: str) -> None:
        if problem := name_problem(name):
            self._fail(node, problem)

    # Branches

    def _if(self, statement: ast.If) -> Step:
        modules: list[Module] = []
        tests: list[str] = []
        branch: ast.If | None = statement
        while branch is not None:
            test = self._parameter_name(branch.test, "a condition")
            tests.append(test)
            modules.append(Module(test, self._steps(branch.body), _is_true(test), _same))
            rest = branch.orelse
            branch = rest[0] if len(rest) == 1 and isinstance(rest[0], ast.If) else None
            if branch is None and rest:
                name = "not_" + "_or_".join(tests)
                modules.append(Module(name, self._steps(rest), _always, _same))
        return modules[0] if len(modules) == 1 else Choice(None, tuple(modules))

    def _match(self, statement: ast.Match) -> Step:
        subject = self._parameter_name(statement.subject, "what is matched")
        modules: list[Module] = []
        for case in statement.cases:
            if case.guard is not None:
                self._fail(case.guard, "a case of a prompt program has no condition")
            steps = self._steps(case.body)
            match case.pattern:
                case ast.MatchValue(value=ast.Constant(value=str(name))):
                    self._check_name(case.pattern, name)
                    modules.append(Module(name, steps, _is_equal(subject, name), _same))
                case ast.MatchAs(pattern=None, name=None):
                    modules.append(Module("otherwise", steps, _always, _same))
                case _:
                    self._fail(case.pattern, 'a case of a prompt program is a name in quotes, or "_"')
        return Choice(subject, tuple(modules))

    # Calls

    def _call(self, node: ast.Call) -> Module:
        if not isinstance(node.func, ast.Name):
            self._fail(node, _HOLDS)
        name = node.func.id
        self._check_name(node, name)
        called = self._resolve(name)
        if not inspect.isfunction(called):
            self._fail(node, f"{quote(name)} is not a prompt program")
        called = inspect.unwrap(called)
        if called in self._callers:
            self._fail(node, f"{quote(name)} calls itself, so its schema would have no end")
        bindings = self._bindings(node, called)
        return Module(name, read_program(called, self._callers), _always, _bind(bindings, called))

    def _resolve(self, name: str) -> Any:
        variables = inspect.getclosurevars(self._function)
        for scope in (variables.nonlocals, variables.globals):
            if name in scope:
                return scope[name]
        return None

    def _bindings(self, node: ast.Call, called: Callable[..., Any]) -> dict[str, ast.expr]:
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            self._fail(node, "a prompt program is called with plain arguments")
        keywords: dict[str, ast.expr] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self._fail(node, "a prompt program is called with plain arguments")
            keywords[keyword.arg] = keyword.value
        try:
            bound = inspect.signature(called).bind(*node.args, **keywords)
        except TypeError as error:
            self._fail(node, f"{node.func.id if isinstance(node.func, ast.Name) else ''}: {error}")
        for value in bound.arguments.values():
            if not isinstance(value, ast.Constant):
                self._parameter_name(value, "an argument")
        return bound.arguments

    def _fail(self, node: ast.AST, what: str) -> NoReturn:
        line = getattr(node, "lineno", 1) + self._first_line - 1
        column = getattr(node, "col_offset", 0) + self._indent + 1
        name = getattr(self._function, "__name__", "program")
        raise PMLError([PMLIssue(self._where, line, column, name, what)])


def _names(step: Step | None) -> list[str]:
    if isinstance(step, Module):
        return [step.name]
    if isinstance(step, Choice):
        return [*([step.name] if step.name else []), *(module.name for module in step.modules)]
    return []


def _as_line(text: str) -> str:
    if "\n" in text:
        text = textwrap.dedent(text.removeprefix("\n"))
    return text if not text or text.endswith("\n") else text + "\n"


def _always(arguments: Arguments) -> bool:
    return True


def _same(arguments: Arguments) -> Arguments:
    return arguments


def _is_true(name: str) -> Callable[[Arguments], bool]:
    return lambda arguments: bool(arguments[name])


def _is_equal(name: str, value: str) -> Callable[[Arguments], bool]:
    return lambda arguments: bool(arguments[name] == value)


def _bind(bindings: dict[str, ast.expr], called: Callable[..., Any]) -> Callable[[Arguments], Arguments]:
    parameters = inspect.signature(called).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.default is not p.empty}

    def bind(arguments: Arguments) -> Arguments:
        values = {
            name: node.value if isinstance(node, ast.Constant) else arguments[ast.unparse(node)]
            for name, node in bindings.items()
        }
        return {**defaults, **values}

    return bind
