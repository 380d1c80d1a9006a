"""How long something is kept, as clients write it."""

from __future__ import annotations

import re
from typing import Any

from vllm_promptcache.frontend.errors import RefusedError

_TTL = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,3})?)(?P<unit>[smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST = 1e9


def seconds_of(ttl: Any, where: str = "", field: str = "ttl") -> float | None:
    """A time as seconds, or as text with a unit: `90s`, `5m`, `1h`, `7d`. None stays None.

    ``where`` says in whose words, such as ``cache_control of a part``; ``field`` is the request's field.

    Raises:
        RefusedError: it is no time, or not above zero and below 10^9 seconds.
    """
    if ttl is None:
        return None
    seconds: float | None = None  # an integer may be larger than any float
    if isinstance(ttl, int | float) and not isinstance(ttl, bool):
        seconds = ttl
    elif isinstance(ttl, str) and (match := _TTL.fullmatch(ttl)):
        seconds = float(match["number"]) * _SECONDS[match["unit"]]
    if seconds is None or not 0 < seconds < _MOST:
        said = f"{where}: 'ttl'" if where else "'ttl'"
        raise RefusedError(
            f"{said} must be seconds above zero, or a time such as '90s', '5m', '1h', '7d'", field=field
        )
    return float(seconds)
