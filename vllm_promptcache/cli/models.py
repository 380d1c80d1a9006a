"""Says of models whether the prompt cache serves them, and why not. Reads configurations, no weights."""

from __future__ import annotations

import argparse

HELP = "whether a model is served, and why not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a hub name, or a folder with a config.json"
    )
    parser.add_argument("--max-model-len", type=int, help="as vLLM's; a window of that many states is none")
    parser.add_argument("--trust-remote-code", action="store_true", help="as vLLM's")


def run(arguments: argparse.Namespace) -> int:
    """Prints one line a model, with the sentence that a server says when it refuses it."""
    from vllm_promptcache.engine.models import Verdict, verdict_of

    verdicts: list[Verdict] = []
    for model in arguments.models:
        verdict = verdict_of(model, arguments.max_model_len, arguments.trust_remote_code)
        print(f"{model}: {verdict.sentence}", flush=True)
        verdicts.append(verdict)
    return int(not all(verdict.is_served for verdict in verdicts))
