"""What is refused: with which status, type and message, and that the server goes on."""

from typing import Any

import httpx
import openai
import pytest

from tests.server.support import MESSAGES, PROMPT
from tests.server.test_chat import TOOLS, ask

OWN = "<pml>{}<prompt schema='own'/></pml>"


def refused(call: Any) -> tuple[int, str, str]:
    """Status, type and message of what is refused."""
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    body: Any = caught.value.body
    assert body["code"] == caught.value.status_code
    return caught.value.status_code, body["type"], body["message"]


@pytest.mark.parametrize(
    ("pml", "status", "lines"),
    [
        (
            "<prompt schema='travel'>\n<plan><atlantis/></plan>\n<fod/></prompt>",
            400,
            [
                "pml:2:7: prompt/plan/atlantis: unknown module 'atlantis'",
                "pml:3:1: prompt/fod: unknown module 'fod'; did you mean 'food'?",
            ],
        ),
        ("<prompt schema='travl'/>", 404, ["unknown schema 'travl'; did you mean 'travel'?"]),
        ("<prompt schema='travel'>", 400, ["not well-formed XML"]),
        ("<schema name='a'>b</schema>", 400, ["the document has no prompt"]),
        ("x" * 70_000, 413, ["65536 bytes"]),
        (OWN.format("<schema name='own'><module name='m' src='/etc/passwd'/></schema>"), 400, ["'src'"]),
        (OWN.format(f"<schema name='own'>{'word ' * 5000}</schema>"), 400, ["more than the model's 4096"]),
        ('<!DOCTYPE x [<!ENTITY a "b">]><prompt schema="travel">&a;</prompt>', 400, ["DTD"]),
    ],
)
def test_wrong_documents(
    client: openai.OpenAI, http: httpx.Client, pml: str, status: int, lines: list[str]
) -> None:
    ask(client)
    found, kind, message = refused(lambda: ask(client, pml))
    assert (found, kind) == (status, "PMLError")
    assert len(message.splitlines()) == len(lines)
    for line, expected in zip(message.splitlines(), lines, strict=True):
        assert expected in line
    assert ask(client).prompt_cache["modules_resident"] == 3


@pytest.mark.parametrize(
    ("given", "kind", "what"),
    [
        ({"prompt_cache": {"reuze": 1}}, "PMLError", "unknown option 'reuze'; did you mean 'reuse'?"),
        ({"prompt_cache": {"ttl": 60}}, "PMLError", "known options: reuse, repair"),
        (
            {"prompt_cache": {"repair": "best"}},
            "PMLError",
            "unknown repair 'best'; allowed are 'none', 'full'",
        ),
        ({"prompt_cache": {"reuse": False, "repair": "tail"}}, "PMLError", "as with 'full', not 'tail'"),
        ({"prompt_cache": {"reuse": 1}}, "PMLError", "must be true or false"),
        ({"prompt_cache": "no"}, "PMLError", "must be an object"),
        ({"pml": 5}, "PMLError", "must be a string"),
        ({"messages": []}, "BadRequestError", "messages may be empty only"),
        ({"prompt_logprobs": 1}, "BadRequestError", "prompt_logprobs"),
        ({"use_beam_search": True}, "BadRequestError", "use_beam_search cannot be combined with pml"),
        ({"truncate_prompt_tokens": 5}, "BadRequestError", "truncate_prompt_tokens cannot be combined"),
        ({"echo": True, "logprobs": True}, "BadRequestError", "echo with logprobs"),
        ({"chat_template": "{{ messages }}"}, "BadRequestError", "chat_template cannot be combined"),
        ({"kv_transfer_params": {}}, "BadRequestError", "kv_transfer_params cannot be combined"),
        ({"vllm_xargs": {"prompt_cache": "x"}, "pml": None}, "BadRequestError", "no extra argument"),
        ({"tool_choice": "required", "tools": TOOLS, "prompt_logprobs": 0}, "BadRequestError", "prompt_logp"),
        (
            {
                "messages": [],
                "add_generation_prompt": False,
                "continue_final_message": True,
                "pml": PROMPT.replace("</prompt>", "<user>x</user></prompt>"),
            },
            "BadRequestError",
            "continue_final_message needs a message",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "BadRequestError",
            "anything but text",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_requests(
    client: openai.OpenAI, http: httpx.Client, given: dict[str, Any], kind: str, what: str, stream: bool
) -> None:
    pml = given.get("pml", PROMPT)
    rest = {name: value for name, value in given.items() if name != "pml"}
    status, found, message = refused(lambda: ask(client, pml, stream=stream, **rest))
    assert (status, found) == (400, kind) and what in message


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/inference/v1/generate", "/v1/responses"])
def test_other_apis_refuse_pml(server: Any, http: httpx.Client, path: str) -> None:
    body = {"model": "tiny", "messages": [MESSAGES], "input": "x", "pml": PROMPT}
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(f"/v1/completions, not with {path}")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions/render", "/v1/messages"])
def test_other_apis_answer_without_pml(server: Any, http: httpx.Client, path: str) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "prompt": "x", "max_tokens": 1, "pml": None}
    assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200
    assert httpx.post(server.url + path, timeout=60).status_code == 400


def test_options_of_completions_need_a_prompt(client: openai.OpenAI, http: httpx.Client) -> None:
    """Those of chats may be about marks."""
    extra = {"prompt_cache": {"reuse": False}}
    found = refused(lambda: client.completions.create(model="tiny", prompt="x", extra_body=extra))
    assert found[:2] == (400, "PMLError") and "need a prompt in 'pml'" in found[2]


def test_states_cannot_be_smuggled_in_through_another_api(server: Any, http: httpx.Client) -> None:
    """The engine would take a client's word for what a unit's text is."""
    body = {
        "model": "tiny",
        "token_ids": [5, 6, 7],
        "sampling_params": {"max_tokens": 1, "extra_args": {"prompt_cache": {"units": [], "items": []}}},
    }
    answer = httpx.post(f"{server.url}/inference/v1/generate", json=body, timeout=60)
    assert answer.status_code == 400 and "no extra argument" in answer.text


def test_an_unknown_model_is_as_ever(client: openai.OpenAI, http: httpx.Client) -> None:
    assert refused(lambda: ask(client, model="other"))[:2] == (404, "NotFoundError")
    assert ask(client)
