"""Fields beside PML whose values vLLM takes and then fails on: it answers 500, and with PML it is 400."""

import json
from typing import Any

import httpx
import pytest

from tests.server.support import MESSAGES, PROMPT, Server

HUGE = 10**30
HALF = "a\ud800b"


def schema(given: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": given}}}


GRAMMAR = "could not compile this grammar"
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"structured_outputs": value}, "must be an object") for value in (True, 5, 1.5, "x", [], [{}])),
    ({"n": 257}, "n: 257 sequences; pml takes at most 256"),
    ({"n": 10_000}, "n: 10000 sequences; pml takes at most 256"),
    ({"top_k": HUGE}, "top_k: an integer does not fit"),
    ({"stream_interval": HUGE}, "stream_interval: an integer"),
    (
        {"repetition_detection": {"max_pattern_size": HUGE, "min_count": 2}},
        "repetition_detection: an integer",
    ),
    (
        {"repetition_detection": {"max_pattern_size": 5, "min_count": HUGE}},
        "repetition_detection: an integer",
    ),
    ({"structured_outputs": {"json": {"maximum": HUGE}}}, "structured_outputs: an integer"),
    (schema({"type": "integer", "maximum": HUGE}), "response_format: an integer"),
    ({"request_id": HALF}, "request_id: text holds half"),
    ({"session_id": HALF}, "session_id: text holds half"),
    ({"stop": HALF}, "stop: text holds half"),
    ({"stop": ["x", HALF]}, "stop: text holds half"),
    ({"bad_words": [HALF]}, "bad_words: text holds half"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": HALF}}, "structured_outputs: text holds"),
    ({"vllm_xargs": {"x": HALF}}, "vllm_xargs: text holds half"),
    ({"vllm_xargs": {"x": [HALF]}}, "vllm_xargs: text holds half"),
    ({"vllm_xargs": {HALF: 1}}, "vllm_xargs: text holds half"),
    ({"vllm_xargs": {"kv_transfer_params": "x"}}, "'kv_transfer_params' is no extra argument"),
    ({"vllm_xargs": {"kv_transfer_params": 1}}, "'kv_transfer_params' is no extra argument"),
    ({"vllm_xargs": {"ec_transfer_params": "x"}}, "'ec_transfer_params' is no extra argument"),
    ({"structured_outputs": {"regex": r"\p{L}"}}, f"structured_outputs: the engine {GRAMMAR}"),
    ({"structured_outputs": {"regex": "(?P<x>a)"}}, GRAMMAR),
    ({"structured_outputs": {"grammar": "root ::= "}}, GRAMMAR),
    ({"structured_outputs": {"grammar": "root ::= root"}}, GRAMMAR),
    ({"structured_outputs": {"regex": "a"}, "allowed_token_ids": [1]}, "no token that is allowed follows"),
    (schema({"$ref": "#"}), f"response_format: the engine {GRAMMAR}"),
]


def post(server: Server, path: str, **given: Any) -> httpx.Response:
    text = {"messages": MESSAGES} if path.endswith("chat/completions") else {"prompt": " And then"}
    body = {"model": "tiny", "max_tokens": 4, "pml": PROMPT} | text | given
    headers = {"content-type": "application/json"}
    return httpx.post(server.url + path, content=json.dumps(body), headers=headers, timeout=60)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_value_is_an_error_of_the_server(server: Server, http: httpx.Client, path: str) -> None:
    # vLLM's engine keeps the grammar backend of the first request for all others: xgrammar, which a plain
    # regular expression is given to, and which then fails on those that would have had another backend.
    assert post(server, path, structured_outputs={"regex": "a"}).status_code == 200
    for given, what in WRONG:
        answer = post(server, path, **given)
        assert answer.status_code == 400, (given, answer.text)
        error = answer.json()["error"]
        assert error["code"] == 400 and what in error["message"], (given, error)
        streamed = post(server, path, stream=True, **given)
        assert '"code": 500' not in streamed.text and '"code":500' not in streamed.text, given
        assert what in streamed.text, given
    assert post(server, path).status_code == 200


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("logprobs", [0, 1])
def test_the_prompt_s_log_probabilities_are_not_told(
    server: Server, http: httpx.Client, reuse: bool, logprobs: int
) -> None:
    """Whatever is reused, and with no word of reuse where there is none."""
    given = {"echo": True, "logprobs": logprobs, "prompt_cache": {"reuse": reuse}}
    answer = post(server, "/v1/completions", **given)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and message.endswith("are told of generated tokens only")


def test_a_character_that_xml_has_not_is_named(server: Server, http: httpx.Client) -> None:
    for character in ("\0", "\x1b", "&#0;"):
        answer = post(server, "/v1/chat/completions", pml=PROMPT.replace("three", character))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("pml:1:"), answer.text


def test_what_a_tenant_finds_of_its_own_is_all_that_counts_as_cached(
    server: Server, http: httpx.Client
) -> None:
    """A salt for each request: nothing was there before, in the answer as in the server's metrics. (The
    operator's own schemas are everybody's: tests/http/test_tenants.py.)"""
    text = "Salts keep what is asked apart. " * 9
    own = f"<schema name='salted'><system><module name='m'>{text}</module></system></schema>"
    own = f"<pml>{own}<prompt schema='salted'><m/></prompt></pml>"

    def num_cached() -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        values = [
            line.rsplit(" ", 1)[1] for line in lines if line.startswith("vllm:prompt_tokens_cached_total")
        ]
        return sum(map(float, values))

    before = num_cached()
    for salt in ("first of all", "second of all"):
        answer = post(server, "/v1/chat/completions", cache_salt=salt, pml=own).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        report = answer["prompt_cache"]
        assert (report["tokens_reused"], report["tokens_found"]) == (0, 0) and report["tokens_encoded"] > 0
    assert num_cached() == before
