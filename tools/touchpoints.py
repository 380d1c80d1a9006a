"""Compares vLLM's source files with the table of what the plugin touches of them, without importing any.

    python tools/touchpoints.py [FOLDER]

FOLDER is one that has the package ``vllm``: an unpacked wheel, a checkout, site-packages; by default the
installed one. Prints a table; the exit status is 1 if a touchpoint is missing or takes other parameters.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from vllm_promptcache.compat.touchpoints import TOUCHPOINTS, Touchpoint, missing


def problem_in(folder: Path, touchpoint: Touchpoint) -> str:
    """What is wrong with a touchpoint in a source tree; empty if nothing is."""
    path = folder / (touchpoint.module.replace(".", "/") + ".py")
    if not path.exists():
        path = path.with_suffix("") / "__init__.py"
    if not path.exists():
        return f"{touchpoint.module} is not there"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found: ast.AST | None = None
    for name in touchpoint.name.split("."):
        found = next((n for n in body if getattr(n, "name", None) == name), None)
        if found is None:
            source = _imported_from(body, name)
            return (
                problem_in(folder, touchpoint._replace(module=source))
                if source
                else f"{touchpoint} is not there"
            )
        body = getattr(found, "body", [])
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    arguments = found.args
    return missing(
        touchpoint, [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    )


def _imported_from(body: list[ast.stmt], name: str) -> str:
    """The module of vLLM that a module takes a name from; empty if it does not."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return node.module if node.module and node.module.startswith("vllm.") else ""
    return ""


def main(arguments: list[str]) -> int:
    spec = importlib.util.find_spec("vllm") if not arguments else None
    if not arguments and (spec is None or spec.origin is None):
        print("vLLM is not installed: name a folder", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else Path(str(spec and spec.origin)).parents[1]
    wrong = 0
    for part, touchpoints in TOUCHPOINTS.items():
        print(f"\n{part}")
        for touchpoint in touchpoints:
            problem = problem_in(folder, touchpoint)
            wrong += bool(problem)
            print(f"  {'CHANGED' if problem else 'ok':8}{problem or touchpoint}")
    print(f"\n{sum(map(len, TOUCHPOINTS.values()))} touchpoints, {wrong} changed")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
