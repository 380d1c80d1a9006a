"""What one tenant has shows in no count that others see."""

from tests.frontend.support import FrontEnd, schema
from tests.http.support import Client
from vllm_promptcache.blocks.unit_key import UnitKey


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
