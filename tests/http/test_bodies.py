"""What a body may ask for: deduplicated, bounded, or a little at a time."""

import asyncio
import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from tests.frontend.support import FrontEnd, StoreConnection, schema
from tests.http.support import Client, error_of
from vllm_promptcache.frontend.registry import ENCODED_AT_ONCE, TOLD_AT_ONCE
from vllm_promptcache.server.bodies import MAX_NAMES

T = TypeVar("T")

NUM_MODULES = 3000


class WatchedConnection(StoreConnection):
    """Keeps how many units each call told of, and in which thread each function ran."""

    def __init__(self) -> None:
        super().__init__(num_blocks=40_000, pin_limit=20_000)
        self.told: list[tuple[str, int]] = []
        self.num_in_threads = 0

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.told.append((operation, len(payload.get("units", payload.get("texts", ())))))
        return await super().call(operation, payload)

    async def run(self, function: Callable[[], T]) -> T:
        self.num_in_threads += 1
        return await asyncio.to_thread(function)


@pytest.fixture(scope="module")
def large() -> tuple[WatchedConnection, Client]:
    """A schema of some small modules."""
    connection = WatchedConnection()
    client = Client(FrontEnd(connection))
    client.post("/schemas", schema("s", **{f"m{number}": f"text {number}" for number in range(30)}))
    return connection, client


@pytest.mark.parametrize("operation", ["pin", "unpin", "warm"])
def test_a_name_counts_once(large: tuple[WatchedConnection, Client], operation: str) -> None:
    connection, client = large
    connection.told.clear()
    assert client.post(f"/schemas/s/{operation}", {"modules": ["m1"] * 10_000}).status_code == 200
    assert all(number <= 1 for name, number in connection.told if name == operation)


@pytest.mark.parametrize("operation", ["pin", "unpin", "warm"])
def test_a_million_names_are_refused(large: tuple[WatchedConnection, Client], operation: str) -> None:
    connection, client = large
    connection.told.clear()
    for names in (["m"] * 1_000_000, ["m"] * (MAX_NAMES + 1), ["m" * 3_000_000]):
        status, _, message = error_of(client.post(f"/schemas/s/{operation}", {"modules": names}))
        assert status in (400, 413) and len(message) < 1000
    assert connection.told == []


def test_units_are_told_and_encoded_a_few_at_a_time() -> None:
    connection = WatchedConnection()
    modules = "".join(f"<module name='m{number}'>{number}</module>" for number in range(NUM_MODULES))
    union = f"<schema name='s'><union>{modules}</union></schema>"
    client = Client(FrontEnd(connection))
    assert client.post("/schemas", union).status_code == 201
    assert client.post("/schemas/s/warm", {}).status_code == 200
    assert client.get("/schemas/s").status_code == 200
    assert client.delete("/schemas/s").status_code == 200
    for operation, at_once in (
        ("define", TOLD_AT_ONCE),
        ("warm", ENCODED_AT_ONCE),
        ("status", TOLD_AT_ONCE),
        ("forget", TOLD_AT_ONCE),
    ):
        told = [number for name, number in connection.told if name == operation]
        assert max(told) <= at_once, operation
    warmed = [number for name, number in connection.told if name == "warm"]
    assert sum(warmed) == NUM_MODULES and len(warmed) == math.ceil(NUM_MODULES / ENCODED_AT_ONCE)
    assert connection.catalog._texts == {}


def test_large_answers_are_made_elsewhere() -> None:
    connection = WatchedConnection()
    client = Client(FrontEnd(connection))
    modules = "".join(f"<module name='m{number}'>{number}</module>" for number in range(500))
    client.post("/schemas", f"<schema name='s'><union>{modules}</union></schema>")
    before = connection.num_in_threads
    assert len(client.get("/schemas/s").json()["modules"]) == 501
    assert connection.num_in_threads == before + 1


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_who_hangs_up_within_a_body_is_no_error_of_the_server(method: str) -> None:
    """Which would be sixty lines of the log for a hundred bytes sent."""
    front_end = FrontEnd()
    client = Client(front_end)
    client.post("/schemas", "<schema name='s'>a<pool name='p'/></schema>")
    posts = ["schemas", "schemas/s/pin", "explain", "stats", "schemas/s/pools/p/modules:batch"]
    for path in posts if method == "POST" else ["schemas/s/pools/p/modules/m"]:
        for kind in (b"application/json", b"application/xml", b"text/plain"):
            assert asyncio.run(_hang_up(client, method, path, kind)) in (200, 400)
    assert not front_end.registry["s"].members.of("s/p")


async def _hang_up(client: Client, method: str, path: str, kind: bytes) -> int:
    """Send the beginning of a body: the status of the answer that nobody reads."""
    received = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(received, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": f"/v1/prompt_cache/{path}",
        "raw_path": f"/v1/prompt_cache/{path}".encode(),
        "query_string": b"",
        "headers": [(b"content-type", kind), (b"content-length", b"100")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await client.app(scope, receive, send)
    return int(sent[0]["status"])
