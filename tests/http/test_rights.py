"""Asking and managing are allowed apart."""

from typing import Any

import pytest

from tests.frontend.support import FrontEnd, schema
from tests.http.support import Client, error_of
from vllm_promptcache.config import PromptCacheConfig

CHANGES: list[tuple[str, str, Any]] = [
    ("post", "/schemas", schema("new")),
    ("post", "/schemas", {"pml": schema("new")}),
    ("post", "/schemas?pin=true", schema("s", m="other text")),
    ("post", "/schemas/s/pin", {}),
    ("post", "/schemas/s/unpin", {}),
    ("post", "/schemas/s/unpin", {"modules": ["m"]}),
    ("post", "/schemas/s/warm", {}),
    ("delete", "/schemas/s", None),
]


def client(**settings: Any) -> Client:
    front_end = FrontEnd(**settings)
    front_end.register(schema("s", m="text"), pin=True)
    return Client(front_end)


@pytest.mark.parametrize("settings", [{"allow_management": False}, {"allow_request_schemas": False}])
@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_nothing_is_changed_where_that_is_not_allowed(
    settings: Any, method: str, path: str, body: Any
) -> None:
    asking = client(**settings)
    before = asking.get("/schemas/s").json()
    answer = asking.post(path, body) if method == "post" else asking.delete(path)
    assert error_of(answer)[:2] == (403, "PermissionDeniedError")
    assert asking.get("/schemas/s").json() == before
    assert asking.get("/schemas").json()["data"][0]["name"] == "s"


@pytest.mark.parametrize("settings", [{}, {"allow_request_schemas": False, "allow_management": True}])
def test_all_is_changed_where_it_is(settings: Any) -> None:
    asking = client(**settings)
    for method, path, body in CHANGES:
        answer = asking.post(path, body) if method == "post" else asking.delete(path)
        assert answer.status_code in (200, 201), (path, answer.text)


def test_managing_is_off_where_requests_bring_no_schemas() -> None:
    assert PromptCacheConfig().allow_management is True
    assert PromptCacheConfig(allow_request_schemas=False).allow_management is False
    settings = PromptCacheConfig(allow_request_schemas=False, allow_management=True)
    assert PromptCacheConfig.from_dict(settings.to_dict()) == settings
