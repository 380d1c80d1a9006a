"""Schemas managed over HTTP."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.support import PROMPT, TRAVEL
from tests.server.test_chat import ask

XML = {"content-type": "application/xml"}
_names = itertools.count()


def schema(name: str, text: str = "Some text. ", num_repeats: int = 80) -> str:
    return f"<schema name='{name}'>{name}: <module name='m'>{text * num_repeats}</module></schema>"


@pytest.fixture
def name(http: httpx.Client) -> Iterator[str]:
    """The name of a schema that is gone after the test."""
    name = f"s{next(_names)}"
    yield name
    http.delete(f"/schemas/{name}")


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == answer.status_code
    return error


def test_the_operators_schema_is_there_pinned_and_resident(http: httpx.Client) -> None:
    listed = {entry["name"]: entry for entry in http.get("/schemas").json()["data"]}
    assert listed["travel"]["pinned"] and listed["travel"]["source"].endswith("travel.pml")
    modules = http.get("/schemas/travel").json()["modules"]
    assert [module["path"] for module in modules] == [
        "travel",
        "travel/plan",
        "travel/plan/maldives",
        "travel/plan/iceland",
        "travel/food",
    ]
    assert {module["residency"] for module in modules} == {"resident"}
    assert modules[1]["parameters"][0]["name"] == "duration"
    assert all(module["span"][0] <= module["span"][1] for module in modules)


def test_register_use_and_delete(client: openai.OpenAI, http: httpx.Client, name: str) -> None:
    created = http.post("/schemas", content=schema(name), headers=XML)
    assert created.status_code == 201
    described = created.json()
    assert {"digest", "modules", "tokens", "positions", "pinned"} <= described.keys()
    assert not described["pinned"]
    again = http.post("/schemas", json={"pml": schema(name)})
    assert (again.status_code, again.json()["digest"]) == (200, described["digest"])
    first, second = (ask(client, f"<prompt schema='{name}'><m/></prompt>") for _ in range(2))
    assert first.prompt_cache["modules_encoded"] == 2 and second.prompt_cache["modules_encoded"] == 0
    assert http.get(f"/schemas/{name}").json()["requests"] == 2
    blocks = http.get("/stats").json()["blocks_modules"]
    deleted = http.delete(f"/schemas/{name}")
    assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
    assert http.get("/stats").json()["blocks_modules"] < blocks
    assert http.get(f"/schemas/{name}").status_code == http.delete(f"/schemas/{name}").status_code == 404
    with pytest.raises(openai.NotFoundError):
        ask(client, f"<prompt schema='{name}'><m/></prompt>")


@pytest.mark.parametrize("as_json", [False, True])
def test_pin_on_registration(http: httpx.Client, name: str, as_json: bool) -> None:
    if as_json:
        answer = http.post("/schemas", json={"pml": schema(name), "pin": True})
    else:
        answer = http.post("/schemas", params={"pin": "true"}, content=schema(name), headers=XML)
    assert answer.json()["pinned"]
    assert http.post(f"/schemas/{name}/unpin").json()["pinned"] is False


def test_residency_of_single_modules(http: httpx.Client, name: str) -> None:
    http.post("/schemas", content=schema(name), headers=XML)
    pinned = http.post(f"/schemas/{name}/pin", json={"modules": ["m"]}).json()
    assert [module["pinned"] for module in pinned["modules"]] == [False, True]
    assert http.post(f"/schemas/{name}/warm").status_code == 200
    assert http.post(f"/schemas/{name}/unpin", json={"modules": [f"{name}/m"]}).status_code == 200
    for operation, body, status in [
        ("pin", {"modules": ["x"]}, 404),
        ("pin", {"module": "m"}, 400),
        ("melt", {}, 404),
    ]:
        assert error_of(http.post(f"/schemas/{name}/{operation}", json=body))["code"] == status
    assert http.post("/schemas/none/pin").status_code == 404


def test_a_document_with_several_schemas_registers_all_or_none(http: httpx.Client, name: str) -> None:
    wrong = f"<pml>{schema(name)}<schema name='b'><module/></schema></pml>"
    assert error_of(http.post("/schemas", content=wrong, headers=XML))["type"] == "PMLError"
    assert http.get(f"/schemas/{name}").status_code == 404
    right = f"<pml>{schema(name)}{schema('second')}</pml>"
    answer = http.post("/schemas", content=right, headers=XML)
    assert [entry["name"] for entry in answer.json()["data"]] == [name, "second"]
    http.delete("/schemas/second")


def test_a_new_version_leaves_requests_in_flight_alone(
    client: openai.OpenAI, http: httpx.Client, name: str
) -> None:
    http.post("/schemas", content=schema(name), headers=XML)
    pml = f"<prompt schema='{name}'><m/></prompt>"
    given: dict[str, Any] = {"max_tokens": 400, "ignore_eos": True}
    undisturbed = ask(client, pml, **given).choices[0].message.content
    stream = iter(ask(client, pml, stream=True, **given))
    parts = [next(stream).choices[0].delta.content or "" for _ in range(3)]
    newer = http.post("/schemas", content=schema(name, "Other text. "), headers=XML)
    assert newer.status_code == 201
    answer = ask(client, pml)
    parts += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == undisturbed
    assert answer.prompt_cache["modules_encoded"] == 1  # the schema's own text is the same
    assert not undisturbed.startswith(answer.choices[0].message.content)


def test_versions_come_and_go_while_requests_run(
    client: openai.OpenAI, http: httpx.Client, name: str
) -> None:
    texts = ("One text. ", "Two texts. ")
    pml = f"<prompt schema='{name}'><m/></prompt>"
    expected = []
    for text in texts:
        http.post("/schemas", content=schema(name, text), headers=XML)
        expected.append(ask(client, pml).choices[0].message.content)
    over = threading.Event()

    def replace() -> None:
        for text in itertools.cycle(texts):
            if over.is_set():
                return
            http.post("/schemas", content=schema(name, text), headers=XML)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        answers = {ask(client, pml).choices[0].message.content for _ in range(30)}
    finally:
        over.set()
        replacing.join()
    assert answers <= set(expected)


def test_replacing_the_operators_schema_and_putting_it_back(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    before = http.get("/schemas/travel").json()["digest"]
    assert http.post("/schemas", json={"pml": schema("travel"), "pin": True}).status_code == 201
    with pytest.raises(openai.BadRequestError, match="unknown module"):
        ask(client)
    back = http.post("/schemas", json={"pml": TRAVEL, "pin": True}).json()
    assert (back["digest"], back["pinned"]) == (before, True)
    assert ask(client)


@pytest.mark.parametrize(
    ("body", "status", "kind", "what"),
    [
        ("<schema name='s'><module/></schema>", 400, "PMLError", "body:1:18: schema[s]/module"),
        ("<prompt schema='travel'/>", 400, "PMLError", "a prompt cannot be registered"),
        ("", 400, "PMLError", "not well-formed"),
        ("<schema name='s'><module name='m' src='x'/></schema>", 400, "PMLError", "'src' is allowed only"),
        ("x" * 70_000, 413, "PMLError", "larger than 65536 bytes"),
        ({"pml": "<schema/>"}, 400, "PMLError", "pml:1:1: schema: attribute 'name'"),
        ({"pml": schema("s"), "ttl": 0}, 400, "BadRequestError", "'ttl' must be seconds above zero"),
        ({"pml": schema("s"), "pins": True}, 400, "BadRequestError", "pins: Extra inputs"),
        ({"xml": schema("s")}, 400, "BadRequestError", "pml: Field required"),
        ({"pml": "x" * 400_000}, 413, "PMLError", "larger than"),
    ],
)
def test_what_cannot_be_registered(http: httpx.Client, body: Any, status: int, kind: str, what: str) -> None:
    before = http.get("/schemas").json()
    if isinstance(body, str):
        answer = http.post("/schemas", content=body, headers=XML)
    else:
        answer = http.post("/schemas", json=body)
    error = error_of(answer)
    assert (error["code"], error["type"]) == (status, kind) and what in error["message"]
    assert http.get("/schemas").json() == before


def test_a_body_without_a_length_is_limited_too(http: httpx.Client) -> None:
    parts = (b"<schema>" for _ in range(20_000))
    answer = http.post("/schemas", content=parts, headers=XML)
    assert error_of(answer)["code"] == 413


def test_too_many_schemas_are_a_conflict(http: httpx.Client) -> None:
    for number in range(5):
        assert http.post("/schemas", content=schema(f"n{number}"), headers=XML).status_code == 201
    error = error_of(http.post("/schemas", content=schema("n5"), headers=XML))
    assert (error["code"], error["type"]) == (409, "ConflictError")
    for number in range(5):
        http.delete(f"/schemas/n{number}")


def test_explain_refuses_what_the_request_would(http: httpx.Client) -> None:
    for body, status, kind in [
        ({"messages": [], "pml": PROMPT}, 400, "BadRequestError"),
        ({"prompt": "x"}, 400, "PMLError"),
        ({"prompt": "x", "pml": "<prompt schema='none'/>"}, 404, "PMLError"),
        ({"messages": 5, "pml": PROMPT}, 400, "BadRequestError"),
        ({"prompt": "x", "pml": PROMPT, "model": "other"}, 404, "NotFoundError"),
        ({"prompt": "x", "pml": PROMPT, "prompt_logprobs": 1}, 400, "BadRequestError"),
    ]:
        error = error_of(http.post("/explain", json=body))
        assert (error["code"], error["type"]) == (status, kind)
    assert error_of(http.post("/explain", content=b"[]"))["code"] == 400
    assert error_of(http.post("/explain", content=b"{"))["code"] == 400
    for path in ("/explain", "/schemas", "/schemas/travel/warm"):
        deep = http.post(path, content=b"[" * 100_000, headers={"content-type": "application/json"})
        assert "JSON" in error_of(deep)["message"]


def test_a_schema_in_json_takes_any_text(http: httpx.Client, client: openai.OpenAI, name: str) -> None:
    modules = [
        {"name": "report 2024.pdf", "text": "\x0c1\x00 \x1b[0m\uffff\r\nBoats."},
        {"name": "资料", "text": "B"},
    ]
    answer = http.post("/schemas", json={"name": name, "modules": modules, "pin": True})
    assert answer.status_code == 201
    described = http.get(f"/schemas/{name}").json()
    assert described["pinned"]
    assert [module["path"] for module in described["modules"]][1:] == [
        f"{name}/report 2024.pdf",
        f"{name}/资料",
    ]
    assert http.post("/schemas", json={"name": name, "modules": modules}).status_code == 200
    pml = f"<prompt schema='{name}'><use module='report 2024.pdf'/><资料/></prompt>"
    completion = ask(client, pml)
    assert completion.usage is not None and completion.usage.prompt_tokens > 0
    error = error_of(http.post("/schemas", json={"name": name, "modules": [{"text": "x"}]}))
    assert error["code"] == 400 and "modules.0.name: Field required" in error["message"]
