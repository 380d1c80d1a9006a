"""A function's source to steps, with errors at the source's own lines."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from vllm_promptcache.errors import PMLError, PMLIssue, quote
from vllm_promptcache.pml.attributes import MAX_NAME_CHARACTERS, ROLES
from vllm_promptcache.program.scope import Scope
from vllm_promptcache.program.steps import Arguments, Choice, Field, Message, Module, Step, Text

_HOLDS = "a prompt program holds strings, if, match, with system(), and calls of other prompt programs"
_LONGEST_NAME = MAX_NAME_CHARACTERS - 8


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
        self._first_line = max(first_line, 1)
        self._tree = self._parse("".join(lines))
        self._parameters = inspect.signature(function).parameters
        self._scope = Scope(function)
        for parameter in self._parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._fail(self._tree, f"a prompt program cannot take {str(parameter)!r}")

    def _parse(self, source: str) -> ast.stmt:
        """The function's statement. Its text is left alone: lines of strings may have no indentation."""
        is_indented = source[:1].isspace()
        try:
            (statement,) = ast.parse("if True:\n" + source if is_indented else source).body
        except (SyntaxError, ValueError):
            statement = ast.Pass(lineno=1, col_offset=0)
        if is_indented and isinstance(statement, ast.If):
            self._first_line -= 1
            statement = statement.body[0]
        return statement

    def read(self) -> tuple[Step, ...]:
        if not isinstance(self._tree, ast.FunctionDef):
            self._fail(self._tree, "a prompt program is a plain function")
        return self._steps(self._tree.body, _Taken(in_schema=len(self._callers) == 1))

    def _steps(self, body: Sequence[ast.stmt], taken: _Taken) -> tuple[Step, ...]:
        """The steps of statements; `taken` are the names of what they stand in."""
        steps = [self._step(statement, taken) for statement in body]
        return tuple([step for step in steps if step is not None])

    def _step(self, statement: ast.stmt, taken: _Taken) -> Step | None:
        if isinstance(statement, ast.Pass):
            return None
        if isinstance(statement, ast.If):
            return self._if(statement, taken)
        if isinstance(statement, ast.Match):
            return self._match(statement, taken)
        if isinstance(statement, ast.With):
            return self._with(statement, taken)
        if isinstance(statement, ast.Expr):
            value = statement.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return self._text(value, [value], taken)
            if isinstance(value, ast.JoinedStr):
                return self._text(value, value.values, taken)
            if isinstance(value, ast.Call):
                return self._call(value, taken)
        return self._fail(statement, _HOLDS)

    def _with(self, statement: ast.With, taken: _Taken) -> Message:
        call = statement.items[0].context_expr
        role = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        is_plain = len(statement.items) == 1 and statement.items[0].optional_vars is None
        if role not in ROLES or not is_plain or not isinstance(call, ast.Call) or call.args or call.keywords:
            self._fail(statement, "'with' is for messages: with system(), with user(), with assistant()")
        return Message(role, self._steps(statement.body, taken))

    # Text

    def _text(self, node: ast.expr, values: Sequence[ast.expr], taken: _Taken) -> Step | None:
        """Text is dedented as a whole, so fields stand in it as a character that no text can hold."""
        # Parameters cannot stand directly in a schema: there, a text with fields is a module of its own.
        names = _Taken() if taken.in_schema else taken
        fields: list[Field] = []
        text = ""
        for value in values:
            if isinstance(value, ast.FormattedValue):
                fields.append(self._field(value, names))
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
        if not parts:
            return None
        line = Text(tuple(parts))
        if not taken.in_schema or not fields:
            return line
        return Module(taken.module(fields[0].name), (line,), _always, _same)

    def _field(self, node: ast.FormattedValue, taken: _Taken) -> Field:
        if not isinstance(node.value, ast.Name) or node.value.id not in self._parameters:
            what = f"a field is a parameter of the function, not {ast.unparse(node.value)!r}"
            self._fail(node.value, what)
        name = node.value.id
        length = node.format_spec
        spec = ast.unparse(length).strip("f'") if isinstance(length, ast.JoinedStr) else ""
        if not spec.isdecimal() or int(spec) == 0 or node.conversion != -1:
            self._fail(node, f"a field needs its length in tokens: {{{name}:12}} for at most 12")
        default = self._parameters[name].default
        required = default is inspect.Parameter.empty
        text = None if required or default is None else str(default)
        return Field(taken.field(name), name, int(spec), text, required)

    def _value(self, node: ast.expr) -> Callable[[Arguments], Any]:
        self._know(node, [node])
        return self._scope.value(node)

    def _know(self, node: ast.AST, expressions: Sequence[ast.AST]) -> None:
        for name in self._scope.unknown_names(expressions):
            self._fail(node, f"{quote(name)} is neither a parameter of the function nor anything it sees")

    # Branches

    def _if(self, statement: ast.If, taken: _Taken) -> Step:
        modules: list[Module] = []
        tests: list[str] = []
        branch: ast.If | None = statement
        while branch is not None:
            test = ast.unparse(branch.test)
            tests.append(test)
            name = taken.module(test)
            modules.append(Module(name, self._steps(branch.body, _Taken()), self._value(branch.test), _same))
            rest = branch.orelse
            branch = rest[0] if len(rest) == 1 and isinstance(rest[0], ast.If) else None
            if branch is None and rest:
                name = taken.module(_name_of_else(tests))
                modules.append(Module(name, self._steps(rest, _Taken()), _always, _same))
        return modules[0] if len(modules) == 1 else Choice(None, tuple(modules))

    def _match(self, statement: ast.Match, taken: _Taken) -> Step:
        guards = [case.guard for case in statement.cases if case.guard is not None]
        self._know(statement, [statement.subject, *(case.pattern for case in statement.cases), *guards])
        find = self._scope.case(statement)
        union = taken.module(ast.unparse(statement.subject))
        modules = []
        for index, case in enumerate(statement.cases):
            name = taken.module(_name_of_case(case))
            steps = self._steps(case.body, _Taken())
            modules.append(Module(name, steps, _is_case(find, index), _same))
        return Choice(union, tuple(modules))

    # Calls

    def _call(self, node: ast.Call, taken: _Taken) -> Module:
        if not isinstance(node.func, ast.Name):
            self._fail(node, _HOLDS)
        name = node.func.id
        called = self._scope.names().get(name)
        called = inspect.unwrap(called) if callable(called) else called
        if not inspect.isfunction(called):
            self._fail(node, f"{quote(name)} is not a prompt program")
        if called in self._callers:
            self._fail(node, f"{quote(name)} calls itself, so its schema would have no end")
        bindings = self._bindings(node, called)
        return Module(
            taken.module(name), read_program(called, self._callers), _always, _bind(bindings, called)
        )

    def _bindings(self, node: ast.Call, called: Callable[..., Any]) -> dict[str, Callable[[Arguments], Any]]:
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
        return {name: self._value(value) for name, value in bound.arguments.items()}

    def _fail(self, node: ast.AST, what: str) -> NoReturn:
        line = getattr(node, "lineno", 1) + self._first_line - 1
        column = getattr(node, "col_offset", 0) + 1
        name = getattr(self._function, "__name__", "program")
        raise PMLError([PMLIssue(self._where, line, column, name, what)])


class _Taken:
    """Names of modules and of parameters in what statements stand in; one that is taken gets a number."""

    def __init__(self, in_schema: bool = False) -> None:
        self.in_schema = in_schema
        self._modules: set[str] = set()
        self._fields: set[str] = set()

    def module(self, name: str) -> str:
        return _take(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…", self._modules)

    def field(self, name: str) -> str:
        return _take(name, self._fields)


def _take(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _name_of_else(tests: Sequence[str]) -> str:
    if all(test.isidentifier() for test in tests):
        return "not_" + "_or_".join(tests)
    return "not " + " or ".join(test if test.isidentifier() else f"({test})" for test in tests)


def _name_of_case(case: ast.match_case) -> str:
    """A constant as it is, with quotes only where a string has nothing to be seen; else as it is written."""
    pattern = case.pattern
    if case.guard is None and isinstance(pattern, ast.MatchAs) and pattern.name is None:
        return "otherwise"
    name = ast.unparse(pattern)
    if isinstance(pattern, ast.MatchValue) and isinstance(pattern.value, ast.Constant):
        value = pattern.value.value
        if isinstance(value, str) and value.isprintable() and value.strip():
            name = value
    return name if case.guard is None else f"{name} if {ast.unparse(case.guard)}"


def _as_line(text: str) -> str:
    if "\n" in text:
        first, _, rest = text.partition("\n")
        # What begins right behind the quotes has no indentation that could be common.
        text = textwrap.dedent(rest) if not first.strip(" \t") else f"{first}\n{textwrap.dedent(rest)}"
    return text if not text or text.endswith("\n") else text + "\n"


def _always(arguments: Arguments) -> bool:
    return True


def _same(arguments: Arguments) -> Arguments:
    return arguments


def _is_case(find: Callable[[Arguments], int | None], index: int) -> Callable[[Arguments], bool]:
    return lambda arguments: find(arguments) == index


def _bind(
    bindings: dict[str, Callable[[Arguments], Any]], called: Callable[..., Any]
) -> Callable[[Arguments], Arguments]:
    parameters = inspect.signature(called).parameters
    defaults = {p.name: p.default for p in parameters.values() if p.default is not p.empty}
    return lambda arguments: {**defaults, **{name: value(arguments) for name, value in bindings.items()}}
