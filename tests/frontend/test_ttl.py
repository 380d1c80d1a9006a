"""Times as clients write them."""

from typing import Any

import pytest

from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.ttl import seconds_of


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        (None, None),
        (60, 60.0),
        (0.5, 0.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5m", 90.0),
        ("1h", 3600.0),
        ("7d", 604800.0),
    ],
)
def test_times(ttl: Any, seconds: float | None) -> None:
    assert seconds_of(ttl) == seconds


@pytest.mark.parametrize(
    "ttl",
    [
        0,
        -1,
        "0",
        "0s",
        "0.000h",
        True,
        float("nan"),
        float("inf"),
        10**400,
        "999999999d",
        "",
        "soon",
        "1w",
        " 5m",
        [5],
        {"s": 5},
        "٣h",
    ],
)
def test_what_is_no_time_above_zero_is_refused(ttl: Any) -> None:
    with pytest.raises(
        RefusedError, match=r"^cache_control of a part: 'ttl' must be seconds above zero"
    ) as refused:
        seconds_of(ttl, "cache_control of a part", "messages")
    assert refused.value.field == "messages"
    with pytest.raises(RefusedError, match=r"^'ttl' must be"):
        seconds_of(ttl)
