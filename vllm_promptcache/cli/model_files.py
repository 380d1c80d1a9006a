"""A model's tokenizer and length, without loading the model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from vllm_promptcache.cli.failure import Failure
from vllm_promptcache.layout.encoder import TextEncoder

# What configurations call the number of positions.
_LENGTH_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model's tokenizer and how many positions it has."""

    tokenizer: Any
    encoder: TextEncoder
    max_model_len: int


def add_model_arguments(parser: argparse.ArgumentParser, required: bool) -> None:
    """`--model`, `--max-model-len` and `--trust-remote-code`."""
    parser.add_argument("--model", required=required, help="a model's folder or name, for its tokenizer")
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="positions, if not as many as the model's configuration says",
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run tokenizer code of the model's own"
    )


def load_model_files(arguments: argparse.Namespace) -> ModelFiles:
    """Loads what the arguments name. Raises Failure where that is not possible."""
    # Takes seconds to import, which checking documents without a model does not need.
    from transformers import AutoConfig, AutoTokenizer, logging

    logging.set_verbosity_error()
    remote = arguments.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=remote)
        config = None
        if arguments.max_model_len is None:
            config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=remote)
    except (OSError, ValueError, ImportError) as error:
        raise Failure(f"cannot load the tokenizer of {arguments.model!r}: {error}") from error
    max_model_len = arguments.max_model_len or _length(config)
    if max_model_len is None:
        raise Failure(f"the configuration of {arguments.model!r} names no length: give --max-model-len")
    return ModelFiles(tokenizer, TextEncoder(tokenizer), max_model_len)


def _length(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((int(value) for name in _LENGTH_FIELDS if (value := getattr(text, name, None))), None)
