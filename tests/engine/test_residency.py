"""Who gives way to whom: idle modules before plain prefixes, tenants beyond their share before others; what
all share; what is kept as requests ask; and what is counted of each tenant."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.plans import new, plan, random_tokens, simple, unit
from tests.engine.support import Engine, SharedEngine, close_all, composed, greedy, report_of, serving
from vllm_promptcache.blocks.wire import Keep, units_to_wire
from vllm_promptcache.contract.plan import CachedSegment, Plan
from vllm_promptcache.contract.unit import Placement
from vllm_promptcache.engine.stored_unit import Residency
from vllm_promptcache.records.shares import tenant_name

SIZE = 32
NUM_BLOCKS = 40
SALT = "a salt"


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Path) -> Iterator[SharedEngine]:
    yield SharedEngine(
        tiny_model,
        max_model_len=1024,
        num_gpu_blocks_override=NUM_BLOCKS + 1,
        prompt_cache={"host_gib": 0.1, "pin_fraction": 0.3},
    )
    close_all()


@pytest.fixture(scope="module")
def clock() -> list[float]:
    return [time.monotonic()]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> list[float]:
    """The time, which goes on from test to test, as the engine does."""
    clock[0] += 1.0
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def plain(name: str, num_blocks: int) -> list[int]:
    return random_tokens(num_blocks * SIZE + 3, name).tolist()


def module(name: str, num_blocks: int, question: str = "") -> Plan:
    return simple(name, num_blocks * SIZE, 5, question)


def cached_blocks(engine: Engine, name: str, num_blocks: int) -> int:
    (output,) = engine.ask([plain(name, num_blocks)], greedy(1))
    return (output.num_cached_tokens or 0) // SIZE


def is_resident(engine: Engine, prompt: Plan, salt: str | None = None) -> bool:
    known = engine.store.known
    keys = [key for key in known.placements_of(prompt.units[0].digest) if key.tenant == salt]
    return any(known[key].residency is Residency.RESIDENT for key in keys)


def evicted_for(engine: Engine, reason: str) -> int:
    return int(engine.call("stats")["evicted_for"][reason])


@pytest.mark.parametrize("last", ["plain", "module"])
def test_idle_modules_give_way_before_plain_prefixes(engine: Engine, last: str) -> None:
    """Whichever was used last: 10 blocks of a prefix, 10 of a module, and somebody who needs 25 of 40."""
    before = evicted_for(engine, "prefix")
    asked: list[Plan | list[int]] = [plain(f"{last} prefix", 10), module(f"{last} idle", 10)]
    for prompt in asked if last == "module" else asked[::-1]:
        engine.ask([prompt], greedy(1))
    engine.ask([plain(f"{last} other", 25)], greedy(1))
    assert not is_resident(engine, module(f"{last} idle", 10))
    assert evicted_for(engine, "prefix") == before + 1
    assert cached_blocks(engine, f"{last} prefix", 10) == 10


def test_only_as_many_modules_go_as_have_the_blocks(engine: Engine) -> None:
    """The longest idle ones, and none of which a request is composed that waits or runs."""
    modules = [module(f"few {i}", 5) for i in range(4)]
    for prompt in modules:
        engine.ask([prompt], greedy(1))
    engine.ask([plain("few prefix", 10)], greedy(1))
    used = engine.add(module("few 0", 5), greedy(40))
    engine.step()
    engine.ask([plain("few other", 13)], greedy(1))
    assert [is_resident(engine, prompt) for prompt in modules] == [True, False, True, True]
    engine.finish()
    assert engine.outputs[used].outputs[0].finish_reason == "length"
    assert cached_blocks(engine, "few prefix", 10) == 10


def test_what_is_pinned_stays_and_prefixes_go(engine: Engine) -> None:
    prompt = module("pinned", 8)
    engine.call("define", texts=units_to_wire(prompt.units))
    assert engine.call("pin", units=[prompt.units[0].placement])["pinned"]
    engine.drain()
    engine.ask([plain("a prefix", 10)], greedy(1))
    engine.ask([plain("another", 25)], greedy(1))
    assert is_resident(engine, prompt)
    assert cached_blocks(engine, "a prefix", 10) < 10
    engine.call("unpin", units=[prompt.units[0].placement])
    engine.call("forget", units=[prompt.units[0].placement])


def test_modules_one_after_the_other_take_no_prefixes(engine: Engine) -> None:
    """Whatever their number: each takes the blocks of those before it. Also those that are loaded."""
    engine.ask([plain("kept prefix", 15)], greedy(1))
    for _ in range(2):
        for number in range(12):
            engine.ask([module(f"one of many {number}", 5)], greedy(1))
    assert engine.call("stats")["loads"] > 0
    assert cached_blocks(engine, "kept prefix", 15) == 15


def test_what_composed_requests_leave_in_the_cache_takes_no_modules(engine: Engine) -> None:
    prompt = module("stays", 10)
    before = evicted_for(engine, "prefix")
    for number in range(12):
        units = prompt.units[0]
        asked = plan(units, new(10 * SIZE, 100, f"{number}"))
        engine.ask([asked], greedy(1))
    assert engine.encoded == [engine.encoded[0]]
    assert evicted_for(engine, "prefix") == before


def test_a_tenant_beyond_its_share_loses_first(engine: Engine) -> None:
    """Half of the blocks; the other tenants' modules were idle for longer."""
    mine, public = module("mine", 8), module("public", 8)
    engine.ask([mine], greedy(1), cache_salt="quiet")
    engine.ask([public], greedy(1))
    for number in range(12):
        engine.ask([module(f"greedy {number}", 5)], greedy(1), cache_salt="greedy")
    assert is_resident(engine, mine, "quiet")
    assert is_resident(engine, public)
    assert engine.store.resident.block_shares.amounts["greedy"] == 20


def test_alone_a_tenant_may_have_everything(engine: Engine) -> None:
    for number in range(7):
        engine.ask([module(f"alone {number}", 5)], greedy(1), cache_salt="alone")
    assert engine.store.resident.block_shares.amounts == {"alone": 35}


def test_operators_schemas_are_shared_by_all_tenants(engine: Engine) -> None:
    root, brought = unit("root", (0, 70)), unit("brought", (164, 200))
    known = unit("known", (70, 164), context=[root])
    seen = unit("in sight", (164, 250), context=[root])
    engine.call("define", texts=units_to_wire([root, known]), shared=True)
    for salt in (None, "one", "two"):
        engine.ask([plan(root, known, new(300, 9))], greedy(1), cache_salt=salt)
    assert {key.tenant for key in engine.encoded} == {None}
    assert len(engine.encoded) == 2
    engine.ask([plan(root, known, seen, new(300, 9))], greedy(1), cache_salt="one")
    engine.ask([plan(root, known, brought, new(300, 9))], greedy(1), cache_salt="two")
    assert [key.tenant for key in engine.encoded[2:]] == ["one", "two"]
    engine.call("forget", units=[root.placement, known.placement], shared=True)
    engine.call("define", texts=units_to_wire([root, known]))
    engine.ask([plan(root, known, new(300, 9))], greedy(1), cache_salt="one")
    assert [key.tenant for key in engine.encoded[4:]] == ["one", "one"]
    engine.call("forget", units=[root.placement, known.placement])


def keeping(prompt: Plan, *, ttl: float | None, pin: bool, position: int = 0) -> Any:
    placement = Placement(prompt.units[0].digest, position)
    return composed(greedy(1), prompt, keeps=[Keep(placement, ttl, pin)])


def ask_keeping(engine: Engine, prompt: Plan, **keep: Any) -> dict[str, int]:
    position = keep.get("position", 0)
    moved = plan(CachedSegment(prompt.units[0], 0, prompt.units[0].num_tokens, position), new(900, 5))
    salt = keep.pop("salt", None)
    tokens = [0] * (moved.num_cached_tokens + moved.num_new_tokens)
    name = engine.add(tokens, keeping(moved, **keep), cache_salt=salt)
    engine.finish()
    return report_of(engine.outputs.pop(name))


def test_requests_pin_what_they_ask_for(engine: Engine, now: list[float]) -> None:
    """At the place where it stood last, for an hour after the last use, as far as there is room."""
    prompt = module("marked", 3)
    (text,) = prompt.units
    assert ask_keeping(engine, prompt, ttl=None, pin=True)["modules_pinned"] == 1
    assert ask_keeping(engine, prompt, ttl=None, pin=True, position=100)["modules_pinned"] == 1
    pinned = [key.position for key, one in engine.store.known.by_key.items() if one.pinned]
    assert (pinned, engine.call("stats")["blocks_pinned"]) == ([100], 3)
    engine.reclaim_all()
    assert is_resident(engine, prompt)
    now[0] += 3000
    assert ask_keeping(engine, prompt, ttl=None, pin=True, position=100)["modules_pinned"] == 1
    now[0] += 3000
    engine.call("expire", units=[])
    assert engine.call("stats")["blocks_pinned"] == 3
    now[0] += 601
    assert engine.call("expire", units=[[text.digest, 100]])["pinned"] == [0]
    assert engine.call("stats")["blocks_pinned"] == 0
    assert not engine.scheduler.records._pinned


def test_requests_pin_no_more_than_their_tenants_share(engine: Engine) -> None:
    """8 blocks may be pinned, 4 of them for one tenant."""
    reports = [
        ask_keeping(engine, module(f"held {salt} {i}", 2), ttl=50, pin=True, salt=salt)
        for salt in ("x", "y", "z")
        for i in range(3)
    ]
    pinned = [report.get("modules_pinned", 0) for report in reports]
    assert pinned == [1, 1, 0] * 2 + [0, 0, 0]
    assert [report.get("pins_refused", 0) for report in reports] == [1 - one for one in pinned]
    assert all(report["modules_encoded"] == 1 for report in reports)
    engine.scheduler._keeping.ended(engine.store.pins.expire(time.monotonic() + 51))


def test_marked_states_go_after_their_time(engine: Engine, now: list[float]) -> None:
    """Also if no request comes: the time that was asked for last, if it is longer, and none is for ever."""
    ask_keeping(engine, module("short", 3), ttl=10, pin=False)
    ask_keeping(engine, module("longer", 3), ttl=10, pin=False)
    ask_keeping(engine, module("longer", 3), ttl=20, pin=False)
    found = []
    for _ in range(2):
        now[0] += 11
        engine.call("expire", units=[])
        found.append([is_resident(engine, module(name, 3)) for name in ("short", "longer")])
    assert found == [[False, True], [False, False]]
    assert engine.scheduler.has_requests(), "workers are to be told"
    engine.drain()
    assert not engine.kept_rows


def test_each_tenant_sees_its_own_counts(engine: Engine) -> None:
    def of(salt: str) -> dict[str, Any]:
        return engine.call("stats", tenant=salt)

    prompt = module("counted", 3)
    for salt in (None, SALT, SALT, "other salt"):
        engine.ask([prompt], greedy(1), cache_salt=salt)
    engine.reclaim_all()
    engine.ask([prompt], greedy(1), cache_salt=SALT)
    mine, nobody = of(SALT), of("never seen")
    names = ("requests", "hits", "loads", "misses", "encodings", "tokens_saved", "blocks_modules")
    assert [mine[name] for name in names] == [3, 1, 1, 1, 1, 2 * 96, 3]
    assert mine["evicted_for"]["blocks"] == 1
    assert mine["bytes_in_memory"] == 96 * 3 * 2 * 32 * 2 * 4
    assert not any(value for value in nobody.values() if isinstance(value, int))
    public, everything = engine.call("stats", public=True), engine.call("stats", tenants=True)
    tenants = everything["tenants"]
    assert {"", tenant_name(SALT), tenant_name("other salt")} <= tenants.keys()
    assert tenants[tenant_name(SALT)] == mine
    assert SALT not in str(everything)
    for name in ("requests", "misses", "evictions", "bytes_in_memory", "blocks_modules", "encodings"):
        assert sum(one[name] for one in tenants.values()) == everything[name]
        assert public[name] == tenants[""][name]


def held_by(engine: Engine) -> dict[str, int]:
    """How much the scheduler and the worker keep of units, requests and records, container by container."""
    scheduler, runner = engine.scheduler, engine.core.model_executor.driver_worker.worker.model_runner
    parts = {
        "known": engine.store.known,
        "resident": engine.store.resident,
        "pins": engine.store.pins,
        "backlog": engine.store.backlog,
        "orders": engine.store.resident._with_blocks,
        "orders of rows": engine.store.resident._with_rows,
        "catalog": scheduler.catalog,
        "records": scheduler.records,
        "host": scheduler.records.host,
        "recordings": scheduler.recordings,
        "loads": scheduler.loads,
        "encodings": scheduler.encodings,
        "keeping": scheduler._keeping,
        "expiry": scheduler._expiry,
        "sparing": engine.manager.sparing,
        "composed": engine.manager.composed,
        "tally": engine.store.resident.tally,
        "kept rows": runner.row_store,
        "record rows": runner.records.rows,
    }
    return {
        f"{name}.{attribute}": len(value)
        for name, part in parts.items()
        for attribute, value in vars(part).items()
        if hasattr(value, "__len__")
    }


def test_thousands_of_different_texts_leave_no_more_than_hundreds(tiny_model: Path) -> None:
    """2,000 modules that came with requests of one client, marked with times as well: what is held is bounded
    by what there is room for, whatever their number."""
    found = []
    settings = {"host_gib": 100 * 40 * 3 * 2 * 32 * 2 * 4 / 2**30, "module_ttl_s": 1000}
    with serving(
        tiny_model, max_model_len=1024, num_gpu_blocks_override=101, prompt_cache=settings
    ) as engine:
        for first in range(0, 2000, 50):
            prompts = [simple(f"text {number}", 40, 3) for number in range(first, first + 50)]
            names = []
            for prompt in prompts:
                params = keeping(prompt, ttl=500.0, pin=len(names) % 7 == 0)
                tokens = [0] * (prompt.num_cached_tokens + prompt.num_new_tokens)
                names.append(engine.add(tokens, params, cache_salt="client"))
            engine.finish()
            assert all(report_of(engine.outputs.pop(name))["modules_encoded"] == 1 for name in names)
            if first in (950, 1950):
                found.append(held_by(engine))
        half, end = found
        more = {name: (half[name], count) for name, count in end.items() if count > 1.1 * half[name] + 8}
        assert not more, more
        assert end["known.by_key"] <= 101
        assert engine.scheduler.records.host.num_bytes <= settings["host_gib"] * 2**30
