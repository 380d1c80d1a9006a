"""What one tenant has shows in no count that others see."""

import json

from prometheus_client import make_asgi_app

from tests.frontend.support import FrontEnd, schema
from tests.http.support import Client
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.telling import UnitTelling
from vllm_promptcache.records.shares import tenant_name
from vllm_promptcache.server.metrics import extend_metrics


def test_a_tenants_units_are_not_counted() -> None:
    front_end = FrontEnd()
    client = Client(front_end)
    client.post("/schemas", schema("s", m="text " * 20, n="words " * 20))
    client.post("/schemas/s/warm", {})
    before = client.get("/stats").json()
    connection = front_end.connection
    texts = connection.catalog.texts_of([p.digest for p in front_end.registry["s"].placements], {})
    keys = [UnitKey(p.digest, p.position, None, "salt") for p in front_end.registry["s"].placements]
    for key in keys:
        connection._encode(connection.store.known.hold(key, texts))
    assert client.get("/stats").json() == before
    assert before["blocks_free"] + before["blocks_modules"] == before["blocks_total"]
    whole = connection.control.call("stats", {})
    assert whole["units_resident"] == 2 * before["units_resident"]


def test_nothing_that_becomes_of_a_tenants_units_shows_to_others() -> None:
    """Neither in all counts of the public nor in those of another tenant: encoded, used, pinned, dropped for
    blocks, forgotten."""
    front_end = FrontEnd()
    client = Client(front_end)
    client.post("/schemas", schema("s", m="text " * 20))
    client.post("/schemas/s/pin", {})
    connection, placements = front_end.connection, front_end.registry["s"].placements
    store, texts = connection.store, connection.catalog.texts_of([p.digest for p in placements], {})

    def seen() -> list[dict[str, int]]:
        return [client.get("/stats").json(), client.post("/stats", {"cache_salt": "another"}).json()]

    before = seen()
    keys = [UnitKey(*placement, None, "salt") for placement in placements]
    for key in keys:
        connection._encode(store.known.hold(key, texts))
        assert seen() == before
    store.resident.use(keys)
    assert seen() == before
    store.resident.end_use(keys)
    assert store.pins.pin(keys)
    assert seen() == before
    store.pins.unpin(keys)
    assert len(list(store.resident.reclaim(set()))) > 0 and store.resident.tally.total.evictions
    assert seen() == before
    for key in keys:
        store.known.release(key)
    assert seen() == before


def test_a_tenant_sees_its_own_and_who_manages_sees_all() -> None:
    front_end = FrontEnd()
    client = Client(front_end)
    client.post("/schemas", schema("s", m="text " * 20))
    store = front_end.connection.store
    texts = front_end.connection.catalog.texts_of([p.digest for p in front_end.registry["s"].placements], {})
    for placement in front_end.registry["s"].placements:
        key = UnitKey(*placement, None, "salt")
        front_end.connection._encode(store.known.hold(key, texts))
    mine = client.post("/stats", {"cache_salt": "salt"}).json()
    assert mine["units_resident"] == 2
    assert mine["blocks_modules"] == store.resident.num_blocks
    assert client.post("/stats", {"cache_salt": "another"}).json()["units_known"] == 0
    wrong = [client.post("/stats", body).status_code for body in ({}, {"cache_salt": ""})]
    assert wrong == [400, 400]
    everything = client.get("/stats?tenants=true").json()
    assert everything["tenants"][tenant_name("salt")]["units_resident"] == 2
    assert '"salt"' not in json.dumps(everything)
    forbidden = Client(FrontEnd(allow_management=False))
    assert forbidden.get("/stats?tenants=true").status_code == 403
    assert forbidden.post("/stats", {"cache_salt": "salt"}).status_code == 200


def test_operators_schemas_are_defined_for_all() -> None:
    """Those that are registered over the API are not, nor are a server's that does not share."""
    front_end = FrontEnd()
    layouts = front_end.registry.builder.schemas_of(schema("own", m="text"), "own.pml")
    run_sync(front_end.registry.register_layouts(layouts, source="own.pml"))
    front_end.register(schema("other", m="more"))
    (own, other) = (front_end.registry[name] for name in ("own", "other"))
    catalog = front_end.connection.catalog
    assert all(catalog.is_shared(placement.digest) for placement in own.placements)
    assert not any(catalog.is_shared(placement.digest) for placement in other.placements)
    run_sync(front_end.registry.remove("own"))
    assert not catalog._sharing and len(catalog._holders) == len(other.placements)
    telling = UnitTelling(front_end.connection, shares_operators=False)
    assert not telling.is_shared(own)


def test_metrics_are_totals() -> None:
    """Whatever tenants there are: the same series."""
    front_end = FrontEnd()
    client = Client(front_end)
    client.app.mount("/metrics", make_asgi_app())
    extend_metrics(client.app)
    store, counted = front_end.connection.store, []
    for number in range(3):
        store.resident.tally.of(f"salt {number}").misses += 1
        store.resident.tally.total.misses += 1
        text = client.get("http://x/metrics/").text
        lines = [line for line in text.splitlines() if line.startswith("prompt_cache_")]
        assert f"prompt_cache_misses_total {number + 1}.0" in lines
        assert 'prompt_cache_evictions_total{reason="prefix"} 0.0' in lines
        counted.append(len(lines))
    assert counted == [counted[0]] * 3
