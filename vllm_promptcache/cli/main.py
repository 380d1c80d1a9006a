"""`vllm-promptcache`: one command, a subcommand a module of this folder.

A subcommand's module has `HELP` (one line), `add_arguments(parser)` and `run(arguments)`, which returns
the exit code: 0 all is well, 1 something is wrong with what was given, 2 it could not be tried.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vllm_promptcache import __version__
from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.errors import PMLError

# Subcommands and their modules, in the order in which help lists them.
COMMANDS = {
    "check": "vllm_promptcache.cli.check",
    "explain": "vllm_promptcache.cli.explain",
    "advise": "vllm_promptcache.cli.advise",
    "models": "vllm_promptcache.cli.models",
    "compile": "vllm_promptcache.cli.compile",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code. `arguments` are the process's own if None."""
    parser = argparse.ArgumentParser(prog="vllm-promptcache", description="Prompt Cache for vLLM.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except PMLError as error:
        print(error, file=sys.stderr)
        return 1
    except Failure as failure:
        print(f"vllm-promptcache {parsed.command}: {failure}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of a pipe has seen enough (`| head`). Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
