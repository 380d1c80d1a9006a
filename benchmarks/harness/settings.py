"""Settings that every benchmark has."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
# Room that is always left behind the longest cached text, for new tokens and the answer.
RESERVED_POSITIONS = 256 + 128
# Lengths are round to people, not to blocks: neither vLLM's prefix cache nor the composed way is lucky.
ROUND_TO = 100


@dataclass(frozen=True)
class Settings:
    """What the command line says, the same for every benchmark.

    ``block_size`` None is vLLM's default. ``max_model_len`` is the model's own unless given; beyond the
    model's own, its configuration is overridden (speed does not care what the text means).
    """

    model: str
    dtype: str = "bfloat16"
    block_size: int | None = None
    compiled: bool = False
    max_model_len: int = 8192
    overrides_model_len: bool = False
    kv_gib: float = 3.0
    data: str | None = None
    seed: int = 0
    quick: bool = False
    minutes: float | None = None
    server_arguments: tuple[str, ...] = ()

    @property
    def longest_cached(self) -> int:
        """The most tokens that are cached in a benchmark."""
        return (self.max_model_len - RESERVED_POSITIONS) // ROUND_TO * ROUND_TO

    def cached_tokens(self, wanted: int) -> int:
        """``wanted``, or what fits below the model's maximum length."""
        return min(wanted, self.longest_cached)

    def to_json(self) -> dict[str, Any]:
        """Plain types; the model's local folder is cut to its name."""
        return {**asdict(self), "model": Path(self.model).name if "/" in self.model else self.model}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    group = parser.add_argument_group("common options")
    group.add_argument("--model", help="path or hub name (default: the embedded SmolLM2-135M-Instruct)")
    group.add_argument("--dtype", default="bfloat16", help="of weights and KV cache (default: %(default)s)")
    group.add_argument("--block-size", type=int, help="KV cache block size (default: vLLM's)")
    group.add_argument("--compile", action="store_true", help="torch.compile the model (default: eager)")
    group.add_argument(
        "--eager", action="store_false", dest="compile", help="run the model eagerly (default)"
    )
    group.add_argument(
        "--max-model-len", type=int, help="positions (default: the model's, at most 16384 of them)"
    )
    group.add_argument(
        "--kv-gib", type=float, default=3.0, help="KV cache of each engine, GiB (default: %(default)s)"
    )
    group.add_argument("--data", help="JSONL with contexts, question, answers (default: installed packages)")
    group.add_argument("--seed", type=int, default=0, help="of lengths and choices (default: %(default)s)")
    group.add_argument("--quick", action="store_true", help="few samples, small cases: does it work at all?")
    group.add_argument("--minutes", type=float, help="start nothing new after so long")
    group.add_argument(
        "--server-args", default="", help="further arguments of vLLM's server, in one quoted string"
    )


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings of a command line; makes the embedded model if it is asked for and missing."""
    from transformers import AutoConfig

    from demo.embedded_model import resolve_model

    model = resolve_model(args.model)
    own = int(AutoConfig.from_pretrained(model).max_position_embeddings)
    length = args.max_model_len or min(own, 16384)
    return Settings(
        model=model,
        dtype=args.dtype,
        block_size=args.block_size,
        compiled=args.compile,
        max_model_len=length,
        overrides_model_len=length > own,
        kv_gib=args.kv_gib,
        data=args.data,
        seed=args.seed,
        quick=args.quick,
        minutes=args.minutes,
        server_arguments=tuple(shlex.split(args.server_args)),
    )
