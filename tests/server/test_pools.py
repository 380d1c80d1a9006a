"""Members of pools over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest

from tests.reference import greedy, load_reference_model

DESK = """<schema name="desk"><system>Answer from these.<pool name="passages" length="900"/> Briefly.</system>
</schema>"""
NAME = "reports/2024 §3.pdf?x"
TEXT = "Eleven thousand books were lent in that year. " * 12


@pytest.fixture(scope="module", autouse=True)
def desk(http: httpx.Client) -> Iterator[None]:
    assert http.post("/schemas", content=DESK).status_code == 201
    yield
    assert http.delete("/schemas/desk").status_code == 200


def path(name: str = "", pool: str = "passages") -> str:
    return f"/schemas/desk/pools/{pool}/modules" + (f"/{quote(name, safe='')}" if name else "")


def test_a_member_of_any_name(http: httpx.Client) -> None:
    answer = http.put(path(NAME), content=TEXT)
    assert (answer.status_code, answer.json()["name"], answer.json()["pinned"]) == (201, NAME, False)
    assert http.put(path(NAME), content=TEXT).json()["status"] == "unchanged"
    body = {"text": "Other text. " * 20, "pin": True, "ttl": "1h"}
    answer = http.put(path(NAME), json=body)
    assert (answer.status_code, answer.json()["status"], answer.json()["ttl"]) == (200, "replaced", 3600.0)
    found = http.get(path(NAME)).json()
    assert found["pinned"] is True
    assert found["residency"] in ("encoding", "resident")
    assert [member["name"] for member in http.get(path()).json()["data"]] == [NAME]
    assert http.delete(path(NAME)).json() == {
        "object": "prompt_cache.module",
        "name": NAME,
        "deleted": True,
    }
    assert http.delete(path(NAME)).status_code == 404
    assert http.get(path()).json()["total"] == 0


def test_answers_are_those_of_the_reference(
    http: httpx.Client, client: openai.OpenAI, tiny_model: Path
) -> None:
    http.put(path("a"), content=TEXT)
    http.put(path(NAME), content="The desk opens at nine. " * 30)
    uses = f'<use module="{NAME.replace("?", "&#63;")}"/><use module="a"/>'
    pml = f'<prompt schema="desk"><passages>{uses}</passages></prompt>'
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "When?"}]}
    explained = http.post("/explain", json={**body, "pml": pml}).json()
    ids = [segment["unit"] for segment in explained["segments"] if "unit" in segment]
    assert ids[1] == f"desk/passages/{NAME}"
    assert ids[2].startswith("desk/passages/a@")
    tokens, _ = greedy(load_reference_model(tiny_model), explained, 6)
    extra = {"pml": pml, "return_token_ids": True, "ignore_eos": True}
    answer = client.chat.completions.create(**body, max_tokens=6, temperature=0, extra_body=extra)
    assert answer.choices[0].token_ids == tokens  # type: ignore[attr-defined]
    http.delete(path("a"))
    http.delete(path(NAME))


def test_many_in_one_call(http: httpx.Client) -> None:
    lines = [json.dumps({"name": f"n{i:03}", "text": f"Text number {i}. " * 6}) for i in range(150)]
    lines[7] = json.dumps({"name": "empty", "text": ""})
    lines[9] = "no json"
    answer = http.post(f"{path()}:batch", content="\n".join(lines))
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["line"] for one in told] == list(range(1, 151))
    assert [one["name"] for one in told if one["status"] == "refused"] == ["empty", ""]
    assert told[7]["error"] == "it has no token"
    page = http.get(path(), params={"limit": 100}).json()
    assert (len(page["data"]), page["has_more"], page["total"]) == (100, True, 148)
    rest = http.get(path(), params={"limit": 100, "after": page["last_name"]}).json()
    assert (len(rest["data"]), rest["has_more"]) == (48, False)
    deadline = time.monotonic() + 120
    while (progress := http.get(path()).json()["encoding"])["done"] < progress["total"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert progress == {"done": 148, "total": 148}
    again = http.post(f"{path()}:batch", content="\n".join(lines[:3]))
    assert [json.loads(line)["status"] for line in again.text.splitlines()] == ["unchanged"] * 3
    for name in [member["name"] for member in page["data"] + rest["data"]]:
        assert http.delete(path(name)).status_code == 200


def test_what_is_refused(http: httpx.Client) -> None:
    for answer, status, message in (
        (http.put(path("a", pool="passage"), content=TEXT), 404, "unknown pool 'passage'"),
        (http.put("/schemas/dsk/pools/passages/modules/a", content=TEXT), 404, "unknown schema 'dsk'"),
        (http.put(path("a"), content=TEXT * 20), 400, "the pool 'passages' has 900"),
        (http.put(path("a"), content=b"\xff"), 400, "not UTF-8"),
        (http.put(path("a"), json={"text": 3}), 400, "text: "),
        (http.put(path("a"), json={"text": "x", "ttl": "soon"}), 400, "'ttl' must be"),
        (http.put(path(), content=TEXT), 404, "there is nothing at"),
        (http.get(path("a")), 404, "unknown module 'a'"),
        (http.get(path(), params={"limit": 0}), 400, "limit must be"),
        (http.post(path("a"), content=""), 404, "there is nothing at"),
    ):
        assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), (
            answer.text
        )
