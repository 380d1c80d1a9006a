"""Registered members of pools."""

from __future__ import annotations

import time

import pytest

from tests.frontend.support import FrontEnd, StoreConnection
from vllm_promptcache.blocks.unit_key import UnitKey
from vllm_promptcache.contract.plan import CachedSegment
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.describe import details
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.members import NewMember, first_members
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.pools import Put
from vllm_promptcache.frontend.timekeeping import expire, has_ends
from vllm_promptcache.plan.conversation import Turns

DESK = (
    '<schema name="desk">Answer.<module name="m">x<pool name="files" length="30"/></module>'
    '<pool name="passages" length="200"><module name="own">declared</module></pool></schema>'
)
A, B = "the first passage " * 3, "the second passage " * 2


def put(front_end: FrontEnd, *members: NewMember, pool: str = "passages") -> list[Put]:
    return run_sync(front_end.pools.put("desk", pool, members))


def reused(front_end: FrontEnd, *names: str) -> list[str]:
    uses = "".join(f'<use module="{name}"/>' for name in names)
    pml = f'<prompt schema="desk"><passages>{uses}</passages>?</prompt>'
    (prompt,) = run_sync(front_end.composer.compose_texts(pml, PromptOptions(), [""]))
    assert "texts" not in prompt.to_wire()
    return [s.unit.id for s in prompt.plan.segments if isinstance(s, CachedSegment)][1:]


@pytest.fixture
def desk() -> FrontEnd:
    front_end = FrontEnd()
    front_end.register(DESK)
    return front_end


def test_members_are_registered_and_used(desk: FrontEnd) -> None:
    assert [p.status for p in put(desk, NewMember("a b/1.pdf", A), NewMember("b", B))] == ["registered"] * 2
    assert reused(desk, "b", "a b/1.pdf", "own") == [
        "desk/passages/b",
        "desk/passages/a b/1.pdf",
        "desk/passages/own",
    ]
    assert [p.status for p in put(desk, NewMember("b", B), NewMember("a b/1.pdf", B))] == [
        "unchanged",
        "replaced",
    ]
    run_sync(desk.pools.remove("desk", "passages", "b"))
    with pytest.raises(PMLError, match="unknown module 'b'"):
        reused(desk, "b")
    assert reused(desk, "a b/1.pdf") == ["desk/passages/a b/1.pdf"]


def test_what_the_engine_knows_ends_with_the_last_name(desk: FrontEnd) -> None:
    before = dict(desk.connection.catalog._holders)
    put(desk, NewMember("a", A), NewMember("same", A), NewMember("b", B))
    put(desk, NewMember("a", B), NewMember("b", B))
    assert sorted(desk.connection.catalog._holders.values()).count(2) == 1
    for name in ("a", "same", "b"):
        run_sync(desk.pools.remove("desk", "passages", name))
    assert desk.connection.catalog._holders == before
    put(desk, NewMember("a", A, pin=True))
    run_sync(desk.registry.remove("desk"))
    assert desk.connection.catalog._holders == {}
    assert not any(unit.pinned for unit in desk.connection.store.known.by_key.values())


def test_each_member_is_refused_for_itself(desk: FrontEnd) -> None:
    puts = put(
        desk, NewMember("a", A), NewMember("long", "x" * 201), NewMember("empty", ""), NewMember("own", A)
    )
    assert [(p.name, p.error) for p in puts] == [
        ("a", None),
        ("long", "'long' takes 201 positions; the pool 'passages' has 200"),
        ("empty", "it has no token"),
        ("own", "the schema declares a module 'own' in the pool"),
    ]
    for schema, pool, error in (
        ("desk", "passage", "schema 'desk': unknown pool 'passage'; did you mean 'passages'?"),
        ("dest", "passages", "unknown schema 'dest'; did you mean 'desk'?"),
    ):
        with pytest.raises(RefusedError) as caught:
            run_sync(desk.pools.put(schema, pool, [NewMember("a", A)]))
        assert (str(caught.value), caught.value.status) == (error, 404)
    assert put(desk, NewMember("a", "short"), pool="m/files")[0].status == "registered"


def test_a_member_of_a_pool_without_a_length_fits_the_model() -> None:
    """Of its positions, what stands before the pool and a new token are not the member's."""
    front_end = FrontEnd()
    front_end.register("<schema name='s'>a<pool name='files'/></schema>")
    members = [NewMember(f"{number}", "x" * number) for number in (1022, 1023)]
    puts = run_sync(front_end.pools.put("s", "files", members))
    assert [one.error for one in puts] == [
        None,
        "'1023' takes 1023 positions; the model, from the pool 'files' on, has 1022",
    ]
    declared = f"<schema name='t'><pool name='files'><module name='m'>{'x' * 1024}</module></pool></schema>"
    with pytest.raises(
        PMLError, match="'m' takes 1024 positions; the model, from the pool 'files' on, has 1023"
    ):
        front_end.register(declared)


def test_not_more_than_are_allowed() -> None:
    front_end = FrontEnd(max_pool_members=2)
    front_end.register(DESK)
    put(front_end, NewMember("a", A), NewMember("b", B))
    with pytest.raises(RefusedError, match="more than 2 members") as caught:
        put(front_end, NewMember("c", A))
    assert caught.value.status == 409


def test_pins_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody asks for anything meanwhile."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    front_end = FrontEnd(StoreConnection(pin_limit=4))
    front_end.register(DESK)
    (first,) = put(front_end, NewMember("a", A, ttl=60, pin=True))
    assert first.error is None
    (second,) = put(front_end, NewMember("b", "other " * 20, pin=True))
    assert second.error is not None
    assert "pin_fraction" in second.error
    member = front_end.pools.member("desk", "passages", "a")
    assert member.is_pinned and has_ends(front_end.service)
    resident, key = front_end.connection.store.resident, UnitKey(*member.unit.placement)
    now[0] += 59
    resident.use((key,))
    now[0] += 2
    run_sync(expire(front_end.registry))
    assert member.is_pinned, "it is in use"
    resident.end_use((key,))
    now[0] += 59
    run_sync(expire(front_end.registry))
    assert member.is_pinned, "a use holds it on"
    now[0] += 62
    run_sync(expire(front_end.registry))
    assert not member.is_pinned
    assert front_end.registry["desk"].pinned == set()
    assert not any(unit.pinned for unit in front_end.connection.store.known.by_key.values())


def test_states_go_after_a_time_without_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members and of schemas that are registered with one; the registrations stay."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    front_end = FrontEnd()
    assert not has_ends(front_end.service)
    run_sync(front_end.registry.register(DESK, ttl=30))
    put(front_end, NewMember("a", A, ttl=60), NewMember("b", B))
    assert has_ends(front_end.service)
    run_sync(front_end.registry.warm("desk"))
    run_sync(front_end.pools.encode("desk", "passages", ["a", "b"]))
    resident = front_end.connection.store.resident
    counts = [resident.num_resident]
    for seconds in (29, 2, 30, 3000):
        now[0] += seconds
        run_sync(expire(front_end.registry))
        counts.append(resident.num_resident)
    own = len(front_end.registry["desk"].placements)
    assert counts == [own + 2, own + 2, 2, 1, 1]
    assert front_end.pools.member("desk", "passages", "a").said.ttl == 60
    run_sync(front_end.registry.register(DESK))
    run_sync(front_end.registry.warm("desk"))
    now[0] += 3000
    run_sync(expire(front_end.registry))
    assert resident.num_resident == own + 1, "registered without a time again"


def test_a_pinned_schema_s_pins_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    front_end = FrontEnd()
    run_sync(front_end.registry.register(DESK, pin=True, ttl=30))
    now[0] += 29
    run_sync(expire(front_end.registry))
    assert front_end.registry["desk"].is_pinned
    now[0] += 2
    run_sync(expire(front_end.registry))
    assert not front_end.registry["desk"].pinned
    assert front_end.residencies("desk") == ["resident"] * len(front_end.registry["desk"].placements)


def test_a_new_version_of_the_schema_keeps_members(desk: FrontEnd) -> None:
    put(desk, NewMember("a", A, pin=True), NewMember("b", B))
    desk.register(DESK.replace("Answer.", "Answer shortly."))
    assert reused(desk, "b", "a") == ["desk/passages/b", "desk/passages/a"]
    member = desk.pools.member("desk", "passages", "a")
    assert member.is_pinned
    assert {key.digest for key, unit in desk.connection.store.known.by_key.items() if unit.pinned} >= {
        member.unit.digest
    }
    desk.register(DESK.replace('length="200"', 'length="40"'))
    assert [m.said.name for m in desk.registry["desk"].members] == ["b"]


def test_pages_and_encoding_ahead(desk: FrontEnd) -> None:
    put(desk, *[NewMember(f"n{i:02}", f"{A} {i}") for i in range(30)])
    entry, pool = desk.pools.pool("desk", "passages")
    members = entry.members.of(pool.path)
    page, more = first_members(members, None, 20)
    assert [m.said.name for m in page] == [f"n{i:02}" for i in range(20)]
    assert more
    rest, more = first_members(members, "n19", 20)
    assert len(rest) == 10
    assert not more
    run_sync(desk.pools.encode("desk", "passages", list(members)))
    status = run_sync(desk.registry.status_of([m.unit.placement for m in members.values()]))
    assert {unit["residency"] for unit in status.values()} == {"resident"}
    progress = desk.pools.progress(pool)
    assert (progress.done, progress.total) == (30, 30)


def test_members_in_requests_own_schemas_and_brought_ones_travel(desk: FrontEnd) -> None:
    put(desk, NewMember("a", A))
    tmp = f'<module name="tmp">{B}</module>'
    pml = f'<prompt schema="desk"><passages><use module="a"/>{tmp}</passages>?</prompt>'
    (prompt,) = run_sync(desk.composer.compose_texts(pml, PromptOptions(), [""]))
    brought = prompt.plan.units[-1]
    assert set(prompt.to_wire()["texts"]) == {brought.digest, *(unit.digest for unit in brought.context)}


def test_other_front_ends_learn_of_members(desk: FrontEnd) -> None:
    put(desk, NewMember("a", A, 60.0, pin=True), NewMember("b", B))
    entry = desk.registry["desk"]
    said = entry.members.to_plain()
    other = FrontEnd()
    other.register(DESK)
    copy = other.registry["desk"]
    copy.pinned = set(entry.pinned)
    copy.take_members(said, other.registry.builder.encoder)
    assert [(m.said, m.is_pinned, m.unit.digest) for m in copy.members] == [
        (m.said, m.is_pinned, m.unit.digest) for m in entry.members
    ]
    kept = list(copy.members)
    copy.take_members(said, other.registry.builder.encoder)
    assert list(copy.members) == kept
    copy.take_members({}, other.registry.builder.encoder)
    assert len(copy.members) == 0


def test_members_are_named_by_path(desk: FrontEnd) -> None:
    put(desk, NewMember("a/b", A))
    for name in ("passages/own", "passages/a/b", "desk/passages/a/b"):
        run_sync(desk.registry.pin("desk", [name]))
    assert len(desk.registry["desk"].pinned) == 2
    with pytest.raises(RefusedError, match="unknown module"):
        run_sync(desk.registry.pin("desk", ["passages/c"]))
    described = details(desk.registry["desk"], run_sync(desk.registry.status(desk.registry["desk"])))
    (pool,) = [module["pool"] for module in described["modules"] if module["path"] == "desk/passages"]
    assert (pool["length"], pool["registered"], pool["modules"][0]["tokens"]) == (200, 1, 8)


def test_pools_in_the_turns_of_a_chat(desk: FrontEnd) -> None:
    """Members stand right behind each other in a message, and what ends it is new behind them."""
    desk.register(
        '<schema name="rag"><system>Sys.</system><user>Notes: <pool name="p">'
        '<module name="x">XX</module></pool></user></schema>'
    )
    pml = '<prompt schema="rag"><p><x/><x/></p></prompt>'
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    for messages in ([], earlier):
        turns = Turns([*messages, {"role": "user", "content": "When?"}])
        prompt = run_sync(desk.composer.compose_chat(pml, PromptOptions(), turns))
        decode = desk.registry.builder.encoder.decode
        assert "Notes: XXXX\nWhen?<|im_end|>" in decode(prompt.token_ids)
        places = [s.first_position for s in prompt.plan.segments if isinstance(s, CachedSegment)][-2:]
        assert places[1] == places[0] + 2
