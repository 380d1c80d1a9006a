"""Counts at /metrics, beside vLLM's own: over all tenants, so that no client adds a series."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from fastapi import FastAPI
from prometheus_client import Gauge
from starlette.routing import Mount

from vllm_promptcache.server.services import STATE

PREFIX = "prompt_cache_"
# By their names in stats. Numbers that only grow end in `_total`, as Prometheus has it.
COUNTS = {
    "requests": "Requests over modules",
    "hits": "Modules that were resident when asked for",
    "loads": "Modules loaded from records for a request",
    "misses": "Modules encoded for a request",
    "encodings": "Units encoded, for requests or ahead of them",
    "tokens_saved": "Prompt tokens that were not computed",
    "records_dropped": "Records that gave way in memory",
    "records_removed": "Records that gave way on disk",
}
LEVELS = {
    "units_known": "Units that the engine knows",
    "units_resident": "Units whose states are in the KV cache",
    "units_encoding": "Units that are being made resident, or are to be",
    "units_pinned": "Units that are pinned",
    "blocks_total": "KV blocks",
    "blocks_free": "KV blocks that nobody holds",
    "blocks_modules": "KV blocks of modules",
    "blocks_pinned": "KV blocks of pinned modules",
    "rows_kept": "Rows beside the KV cache",
    "records_in_memory": "Records in host memory",
    "records_on_disk": "Records on disk",
    "bytes_in_memory": "Bytes of records in host memory",
    "bytes_on_disk": "Bytes of records on disk",
    "schemas": "Registered schemas",
}

App = Callable[[Any, Any, Any], Awaitable[None]]


@cache
def _gauge(name: str, what: str, *labels: str) -> Gauge:
    # Of several API servers, all of which tell the same, the one that was asked last.
    return Gauge(f"{PREFIX}{name}", what, labels, multiprocess_mode="mostrecent")


def show(stats: dict[str, Any]) -> None:
    """Have Prometheus find counts as they are now."""
    for name, what in COUNTS.items():
        _gauge(f"{name}_total", what).set(stats.get(name, 0))
    for name, what in LEVELS.items():
        _gauge(name, what).set(stats.get(name, 0))
    evictions = _gauge("evictions_total", "Units whose states went, by reason", "reason")
    for reason, count in stats["evicted_for"].items():
        evictions.labels(reason).set(count)


def extend_metrics(app: FastAPI) -> None:
    """Ask the engine for its counts whenever the metrics are asked for."""
    for route in app.router.routes:
        if isinstance(route, Mount) and route.path == "/metrics":
            route.app = _refreshed(app, route.app)


def _refreshed(app: FastAPI, metrics: App) -> App:
    async def asked(scope: Any, receive: Any, send: Any) -> None:
        service = getattr(app.state, STATE, None)
        if service is not None:
            show(await service.registry.stats())
        await metrics(scope, receive, send)

    return asked
