"""Compiles a Python prompt program to a PML schema, on stdout."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.program import compile_program

HELP = "compile a Python prompt program to PML"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument(
        "program",
        metavar="MODULE:FUNCTION",
        help="where the program is, as package.module:function or file.py:function",
    )
    parser.add_argument("--name", help="the schema's name, if not the function's")


def run(arguments: argparse.Namespace) -> int:
    """Prints the schema."""
    print(compile_program(_load(arguments.program), arguments.name))
    return 0


def _load(program: str) -> Callable[..., Any]:
    module_name, found, function_name = program.rpartition(":")
    if not found or not module_name or not function_name:
        raise Failure(f"{program!r} is not MODULE:FUNCTION")
    function = getattr(_module(module_name), function_name, None)
    if not callable(function):
        raise Failure(f"{module_name!r} has no function {function_name!r}")
    if not inspect.isfunction(inspect.unwrap(function)):
        raise Failure(f"{program!r} is no function that is written in Python")
    return function  # type: ignore[no-any-return]


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _module_from_file(Path(name))
    # As `python -m` does, and an installed command does not.
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Failure(f"cannot import {name!r}: {error}") from error
    finally:
        sys.path.remove("")


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise Failure(f"there is no file {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
