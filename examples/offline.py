"""Asks without a server: `vllm_promptcache.LLM` is vLLM's class for scripts, with schemas.

VLLM_CPU_KVCACHE_SPACE=1 python examples/offline.py MODEL      # the variable is for CPUs
"""

import sys
from pathlib import Path

from vllm import SamplingParams

from vllm_promptcache import LLM

SCHEMA = Path(__file__).with_name("travel.pml")


def main() -> None:
    llm = LLM(model=sys.argv[1], dtype="float32", max_model_len=4096, enforce_eager=True)
    llm.add_schema(SCHEMA.read_text(encoding="utf-8"), pin=True)
    for place, name in (("maldives", "the Maldives"), ("alps", "the Alps")):
        (output,) = llm.chat_pml(
            f"<prompt schema='travel'><trip><{place}/></trip></prompt>",
            [{"role": "user", "content": f"When is the best season for {name}?"}],
            SamplingParams(temperature=0, max_tokens=40, stop=["\n"]),
        )
        print(output.outputs[0].text)
        print(output.prompt_cache)


if __name__ == "__main__":
    main()
