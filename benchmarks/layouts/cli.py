"""``python -m benchmarks layouts``: a table in Markdown; the exit status says whether the rule holds."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.layouts.table import LAYOUTS, Layout

_HEADER = """| layout | tokens | plain, first | plain, again | composed, first | composed, again |
|---|---|---|---|---|---|"""


def main(arguments: Sequence[str]) -> int:
    """Counts the tokens that each layout computes; 1 if any computes more composed than plain."""
    from demo.embedded_model import embedded_model_path

    parser = argparse.ArgumentParser(prog="python -m benchmarks layouts", description=__doc__)
    parser.add_argument("--model", default=None, help="a model (default: the embedded one)")
    args = parser.parse_args(arguments)
    # One process: nothing is timed.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm_promptcache import LLM

    llm = LLM(
        model=args.model or str(embedded_model_path()),
        chat_template=Path(__file__).with_name("tools.jinja"),
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=4,
        enable_prefix_caching=True,
        kv_cache_memory_bytes=1 << 29,
    )
    print(_HEADER)
    exceeding = [layout.name for layout in LAYOUTS if not _row(llm, layout)]
    for name in exceeding:
        print(f"more composed than plain: {name}")
    return 1 if exceeding else 0


def _row(llm: Any, layout: Layout) -> bool:
    """Prints a layout's row; whether composed computes no more than plain, both sent twice."""
    from vllm import SamplingParams

    attributes = "".join(f' {name}="{value}"' for name, value in layout.options.items())
    llm.add_schema(f'<schema name="s"{attributes}>{layout.schema}</schema>')
    pml = f'<prompt schema="s">{layout.prompt}</prompt>'
    params = SamplingParams(max_tokens=1, temperature=0)
    composed, token_ids = [], []
    for _ in range(2):
        (output,) = llm.chat_pml(pml, list(layout.messages), params, tools=layout.tools)
        report = output.prompt_cache
        composed.append(report["tokens_new"] + report["tokens_encoded"])
        token_ids = list(output.prompt_token_ids)
    llm.reset_prefix_cache()
    plain = []
    for _ in range(2):
        (output,) = llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)
        plain.append(len(token_ids) - (output.num_cached_tokens or 0))
    llm.remove_schema("s")
    llm.reset_prefix_cache()
    figures = " | ".join(f"{count:,}" for count in (len(token_ids), *plain, *composed))
    print(f"| {layout.name} | {figures} |", flush=True)
    return sum(composed) <= sum(plain) and composed[1] <= plain[1]
