"""What a prompt program's expressions mean: evaluated when a prompt is made, with its arguments."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vllm_promptcache.program.steps import Arguments

_CASE = "_case_of_the_program"


class Scope:
    """The names that a function sees: its parameters, closure, globals, and Python's own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._parameters = set(inspect.signature(function).parameters)

    def names(self) -> Mapping[str, Any]:
        """What names mean outside the function, as of now."""
        cells = zip(self._function.__code__.co_freevars, self._function.__closure__ or (), strict=True)
        closure = {name: cell.cell_contents for name, cell in cells if cell_is_full(cell)}
        return {**vars(builtins), **self._function.__globals__, **closure}

    def unknown_names(self, nodes: Iterable[ast.AST]) -> list[str]:
        """Names that are read in expressions and mean nothing."""
        known = self._parameters | self.names().keys()
        walked = [node for root in nodes for node in ast.walk(root)]
        names = [node for node in walked if isinstance(node, ast.Name)]
        bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        bound |= {node.name for node in walked if isinstance(node, ast.MatchAs | ast.MatchStar) and node.name}
        bound |= {node.rest for node in walked if isinstance(node, ast.MatchMapping) and node.rest}
        bound |= {argument.arg for argument in walked if isinstance(argument, ast.arg)}
        return [node.id for node in names if node.id not in known | bound]

    def value(self, node: ast.expr) -> Callable[[Arguments], Any]:
        """The value of an expression for given arguments."""
        code = compile(ast.fix_missing_locations(ast.Expression(node)), "<program>", "eval")
        return lambda arguments: eval(code, {**self.names(), **arguments})

    def case(self, statement: ast.Match) -> Callable[[Arguments], int | None]:
        """The index of the case that applies for given arguments, or None."""
        cases = [
            ast.match_case(case.pattern, case.guard, [ast.parse(f"{_CASE} = {i}").body[0]])
            for i, case in enumerate(statement.cases)
        ]
        tree = ast.Module([ast.Match(statement.subject, cases)], type_ignores=[])
        code = compile(ast.fix_missing_locations(tree), "<program>", "exec")

        def find(arguments: Arguments) -> int | None:
            names = {**self.names(), **arguments, _CASE: None}
            exec(code, names)
            found: int | None = names[_CASE]
            return found

        return find


def cell_is_full(cell: Any) -> bool:
    """Whether a variable of a closure has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
