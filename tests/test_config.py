"""Settings: what is refused, and how that is said."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_promptcache.config import PromptCacheConfig


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("schemas", None, "schemas must be a list of paths"),
        ("schemas", 5, "schemas must be a list of paths"),
        ("schemas", "travel.pml", "schemas must be a list of paths"),
        ("schemas", [1], "schemas must be a list of paths"),
        ("schemas", {"travel.pml": 1}, "schemas must be a list of paths"),
        ("pin_fraction", "0.3", "pin_fraction is '0.3', not a number in 0..1"),
        ("pin_fraction", None, "pin_fraction is None, not a number in 0..1"),
        ("pin_fraction", True, "pin_fraction is True, not a number in 0..1"),
        ("pin_fraction", 1.5, "pin_fraction is 1.5, not a number in 0..1"),
        ("pin_fraction", float("nan"), "pin_fraction is nan, not a number in 0..1"),
        ("max_schemas", "5", "max_schemas is '5', not a positive integer"),
        ("max_document_bytes", 0, "max_document_bytes is 0, not a positive integer"),
        ("min_free_tokens", True, "min_free_tokens is True, not a positive integer"),
        ("allow_request_schemas", "no", "allow_request_schemas must be true or false"),
        ("allow_management", "no", "allow_management must be true, false or null"),
        ("repair", None, "repair"),
        ("host_gib", -1, "host_gib is -1, not a number of GiB"),
        ("disk_gib", float("nan"), "disk_gib is nan, not a number of GiB"),
        ("host_gib", True, "host_gib is True"),
        ("dir", "", "dir is '', not a path"),
        ("dir", 1, "dir is 1, not a path"),
        ("record_dtype", "int4", "record_dtype is 'int4', not auto or fp8"),
        ("module_ttl_s", 0, "module_ttl_s is 0, not a positive number"),
        ("module_ttl_s", float("nan"), "module_ttl_s is nan"),
        ("pin_fractoin", 0.5, "unknown field pin_fractoin"),
    ],
)
def test_wrong_settings_are_named(field: str, value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt cache config: ") as caught:
        PromptCacheConfig.from_dict({field: value})
    assert what in str(caught.value)


@pytest.mark.parametrize("fraction", [0, 1, 0.3])
def test_a_fraction_may_be_a_whole_number(fraction: float) -> None:
    assert PromptCacheConfig.from_dict({"pin_fraction": fraction}).pin_fraction == fraction
