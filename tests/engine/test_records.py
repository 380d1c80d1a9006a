"""Records: units that were dropped, moved, or encoded before a restart come back without a forward pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.oracle import Oracle
from tests.engine.plans import members, new, plan, simple, travel, unit
from tests.engine.support import (
    Engine,
    SharedEngine,
    close_all,
    greedy,
    largest_error,
    report_of,
    serving,
    tokens_of,
)
from tests.models import tiny_model as tiny_model_of
from vllm_promptcache import compat
from vllm_promptcache.blocks.wire import units_to_wire
from vllm_promptcache.contract.plan import CachedSegment, Plan

MAX_ERROR = 1e-3
NUM_TOKENS = 6


@pytest.fixture(scope="module")
def recording_engine(tiny_model: Path) -> Iterator[SharedEngine]:
    yield SharedEngine(tiny_model, prompt_cache={"host_gib": 1.0})
    close_all()


@pytest.fixture
def engine(recording_engine: SharedEngine) -> Engine:
    """An engine that keeps records in memory, with nothing resident or recorded."""
    return recording_engine.get()


def check(engine: Engine, oracle: Oracle, model: Path, prompt: Plan) -> dict[str, int]:
    """Ask once, hold the answer against the oracle, and say what was reported."""
    (output,) = engine.ask([prompt], greedy(NUM_TOKENS, logprobs=5))
    tokens, logprobs = oracle(model, prompt, NUM_TOKENS)
    assert largest_error(output, logprobs) < MAX_ERROR
    assert tokens_of(output) == tokens
    return report_of(output)


def test_what_was_dropped_is_loaded(engine: Engine, oracle: Oracle, tiny_model: Path) -> None:
    prompt = travel("dropped")
    assert check(engine, oracle, tiny_model, prompt)["modules_loaded"] == 0
    num_encodings = len(engine.encoded)
    for _ in range(2):
        engine.reclaim_all()
        report = check(engine, oracle, tiny_model, prompt)
        assert report["modules_loaded"] > 0
        assert report["modules_encoded"] == 0
    assert len(engine.encoded) == num_encodings


@pytest.mark.parametrize("order", [(1,), (2, 1), (1, 2), (3, 1, 2), (1, 3, 2, 5, 4), (5, 4, 3, 2, 1)])
def test_members_at_other_places(
    engine: Engine, oracle: Oracle, tiny_model: Path, order: tuple[int, ...]
) -> None:
    check(engine, oracle, tiny_model, members(*order))
    encoded = {key.digest for key in engine.encoded}
    assert len(encoded) == len(engine.encoded) == len(order) + 1
    report = check(engine, oracle, tiny_model, members(*reversed(order)))
    assert len(engine.encoded) == len(encoded)
    assert report["modules_encoded"] == 0


def test_units_of_a_step_are_loaded_together(
    engine: Engine, oracle: Oracle, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer's cache is written once for those that stay and once for those that are moved, however many."""
    check(engine, oracle, tiny_model, members(*range(1, 9)))
    engine.reclaim_all()
    written: list[str] = []
    update = compat.update_cache

    def watched(layer: Any, *states: Any) -> None:
        written.append(layer.layer_name)
        update(layer, *states)

    monkeypatch.setattr(compat, "update_cache", watched)
    assert report_of(engine.ask([members(*range(8, 0, -1))])[0])["modules_loaded"] == 9
    # And once with the edge rows that the request takes into its own blocks.
    assert len(set(written)) == 3 and max(Counter(written).values()) <= 3


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 97])
def test_members_of_any_length(engine: Engine, oracle: Oracle, tiny_model: Path, tokens: int) -> None:
    root = unit("root", (0, 41))
    member = unit(f"member of {tokens}", (41, 41 + tokens), context=[root])
    for move in (0, 1, 32, 500):
        at = 41 + move + tokens
        prompt = plan(root, CachedSegment(member, 0, tokens, 41 + move), new(at, 5, f"{move}"))
        check(engine, oracle, tiny_model, prompt)
    assert len(engine.encoded) == 2


def test_a_moved_member_alone_is_encoded_at_home(engine: Engine, oracle: Oracle, tiny_model: Path) -> None:
    root = unit("root", (0, 40))
    member = unit("far", (40, 190), context=[root])
    prompt = plan(root, CachedSegment(member, 0, 150, 740), new(890, 5))
    check(engine, oracle, tiny_model, prompt)
    assert sorted(key.position for key in engine.encoded) == [0, 740]


def test_several_ask_at_once_and_some_give_up(engine: Engine, oracle: Oracle, tiny_model: Path) -> None:
    check(engine, oracle, tiny_model, members(1, 2, 3))
    engine.reclaim_all()
    prompts = [members(*order) for order in ((3, 2, 1), (2, 3), (1, 3, 2), (2, 1))]
    gone = engine.add(members(3, 1))
    engine.abort(gone)
    outputs = engine.ask(prompts, greedy(NUM_TOKENS, logprobs=5))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert largest_error(output, oracle(tiny_model, prompt, NUM_TOKENS)[1]) < MAX_ERROR


def test_new_members_are_encoded_once_wherever_they_are_asked_for(
    engine: Engine, oracle: Oracle, tiny_model: Path
) -> None:
    prompts = [members(*order) for order in ((7, 8), (8, 7), (9, 8, 7))]
    outputs = engine.ask(prompts, greedy(NUM_TOKENS, logprobs=5))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert largest_error(output, oracle(tiny_model, prompt, NUM_TOKENS)[1]) < MAX_ERROR
    assert len(engine.encoded) == 4


def test_a_member_twice_in_a_prompt(engine: Engine, oracle: Oracle, tiny_model: Path) -> None:
    root = unit("root", (0, 40))
    member = unit("twice", (40, 130), context=[root])
    twice = [CachedSegment(member, 0, 90, 40 + by) for by in (0, 90, 300)]
    check(engine, oracle, tiny_model, plan(root, *twice, new(430, 5)))
    assert len(engine.encoded) == 2


def test_who_records_gives_up(engine: Engine, oracle: Oracle, tiny_model: Path) -> None:
    """Another one waits for the record meanwhile."""
    first = engine.add(members(4, 6))
    second = engine.add(members(6, 4), greedy(NUM_TOKENS, logprobs=5))
    engine.abort(first)
    engine.finish()
    output = engine.outputs.pop(second)
    assert largest_error(output, oracle(tiny_model, members(6, 4), NUM_TOKENS)[1]) < MAX_ERROR


def test_pins_are_loaded_without_a_request(engine: Engine) -> None:
    prompt = simple("pinned", 200)
    engine.ask([prompt])
    engine.reclaim_all()
    (key,) = set(engine.encoded)
    num_loads = engine.scheduler.loads.num_loads
    engine.call("define", texts=units_to_wire(prompt.units))
    assert engine.call("pin", units=[[key.digest, key.position]])["pinned"]
    engine.ask([list(range(100, 150))])
    assert engine.scheduler.loads.num_loads == num_loads + 1
    assert engine.store.known[key].residency.value == "resident"
    engine.call("unpin", units=[[key.digest, key.position]])
    engine.call("forget", units=[[key.digest, key.position]])


def test_many_are_loaded_without_a_request(engine: Engine) -> None:
    """More than are begun at once: steps go on until the last of them is there."""
    prompts = [simple(f"many {number}", 70) for number in range(40)]
    for prompt in prompts:
        engine.call("define", texts=units_to_wire(prompt.units))
    units = [[prompt.units[0].digest, 0] for prompt in prompts]
    engine.call("warm", units=units)
    engine.drain()
    engine.reclaim_all()
    num_encodings, num_loads = len(engine.encoded), engine.scheduler.loads.num_loads
    engine.call("warm", units=units)
    engine.drain()
    assert engine.call("stats")["units_resident"] == len(prompts)
    assert engine.scheduler.loads.num_loads == num_loads + len(prompts)
    assert len(engine.encoded) == num_encodings
    engine.call("forget", units=units)


def test_pins_end_and_idle_modules_go(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    prompt, other = simple("pinned", 100), simple("idle", 100)
    with serving(tiny_model, prompt_cache={"host_gib": 0.1, "module_ttl_s": 60}) as engine:
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        engine.call("define", texts=units_to_wire(prompt.units))
        placement = [[prompt.units[0].digest, 0]]
        engine.call("pin", units=placement, ttl=100)
        engine.ask([prompt, other])
        now[0] += 50
        engine.ask([other])
        now[0] += 49
        engine.ask([[1, 2, 3]])
        assert engine.call("stats")["units_pinned"] == 1
        assert engine.call("stats")["units_resident"] == 2
        now[0] += 2
        engine.ask([[1, 2, 3]])
        assert engine.call("stats")["units_pinned"] == 0
        assert engine.call("stats")["units_resident"] == 2
        now[0] += 61
        engine.ask([[1, 2, 3]])
        assert engine.call("stats")["units_resident"] == 0
        assert engine.call("stats")["expired"] == 2
        assert report_of(engine.ask([prompt])[0])["modules_loaded"] == 1
        engine.call("forget", units=placement)


def test_counts(tiny_model: Path) -> None:
    with serving(tiny_model, prompt_cache={"host_gib": 0.1}) as engine:
        prompt = simple("counted", 100)
        engine.ask([prompt])
        engine.ask([prompt])
        engine.reclaim_all()
        engine.ask([prompt])
        stats = engine.call("stats")
        counted = {name: stats[name] for name in ("requests", "hits", "loads", "misses", "tokens_saved")}
        assert counted == {"requests": 3, "hits": 1, "loads": 1, "misses": 1, "tokens_saved": 200}
        assert (stats["records_in_memory"], stats["records_on_disk"]) == (1, 0)
        assert stats["bytes_in_memory"] == 100 * 3 * 2 * 32 * 2 * 4


def test_new_weights_leave_no_records(engine: Engine) -> None:
    prompt = simple("stale", 200)
    engine.ask([prompt])
    engine.llm_engine.reset_prefix_cache()
    assert report_of(engine.ask([prompt])[0])["modules_encoded"] == 1


def test_tenants_have_records_of_their_own(engine: Engine) -> None:
    prompt = simple("tenants", 200)
    for salt in ("one", "two"):
        assert report_of(engine.ask([prompt], cache_salt=salt)[0])["modules_encoded"] == 1
    engine.reclaim_all()
    for salt in ("one", "two"):
        assert report_of(engine.ask([prompt], cache_salt=salt)[0])["modules_loaded"] == 1
    assert report_of(engine.ask([prompt])[0])["modules_encoded"] == 1


def test_memory_is_bounded(tiny_model: Path) -> None:
    """Room for five records of a hundred tokens; each takes 3 layers x 2 heads x 32 x 2 x 4 bytes a token."""
    of_record = 100 * 3 * 2 * 32 * 2 * 4
    with serving(tiny_model, prompt_cache={"host_gib": 5.5 * of_record / 2**30}) as engine:
        for number in range(12):
            engine.ask([simple(f"module {number}")])
        keeper = engine.core.model_executor.driver_worker.worker.model_runner.records
        engine.ask([[1, 2, 3]])
        assert keeper.rows.num_bytes == engine.scheduler.records.host.num_bytes == 5 * of_record
        engine.reclaim_all()
        loaded = [report_of(engine.ask([simple(f"module {n}")])[0])["modules_loaded"] for n in (11, 0)]
        assert loaded == [1, 0]


def test_a_restart_encodes_nothing(tiny_model: Path, tmp_path: Path, oracle: Oracle) -> None:
    settings: dict[str, Any] = {"host_gib": 0, "dir": str(tmp_path)}
    prompt, again = members(1, 2, 3), members(3, 1, 2)
    with serving(tiny_model, prompt_cache=settings) as engine:
        check(engine, oracle, tiny_model, prompt)
    files = sorted(tmp_path.glob("records/*.safetensors"))
    assert len(files) == 4
    damaged, foreign = files[0], files[1]
    with serving(tiny_model, prompt_cache=settings) as engine:
        report = check(engine, oracle, tiny_model, again)
        assert engine.encoded == []
        assert report["modules_loaded"] == 4
    data = bytearray(damaged.read_bytes())
    data[-9] ^= 4
    damaged.write_bytes(data)
    foreign.write_bytes(b"something else")
    with serving(tiny_model, prompt_cache=settings) as engine:
        report = check(engine, oracle, tiny_model, again)
        assert len(engine.encoded) == 2
    assert len(list(tmp_path.glob("records/*.safetensors"))) == 4


def test_another_models_records_are_not_read(tiny_model: Path, tmp_path: Path, oracle: Oracle) -> None:
    settings: dict[str, Any] = {"dir": str(tmp_path)}
    with serving(tiny_model, prompt_cache=settings) as engine:
        engine.ask([members(1)])
    other = tiny_model_of("llama", seed=1)
    with serving(other, prompt_cache=settings) as engine:
        check(engine, oracle, other, members(1))
        assert len(engine.encoded) == 2
    assert len(list(tmp_path.glob("records/*.safetensors"))) == 4


def test_a_folder_that_cannot_be_used_is_not(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file")
    with serving(tiny_model, prompt_cache={"dir": str(tmp_path), "host_gib": 0}) as engine:
        assert report_of(engine.ask([simple("x")])[0])["modules_encoded"] == 1
        assert not engine.scheduler.records.is_open


def test_packed_records_take_less(tiny_model: Path, oracle: Oracle) -> None:
    """How close their numbers stay is in tests/records/test_packing.py; what that does here is printed."""
    with serving(tiny_model, prompt_cache={"host_gib": 0.1, "record_dtype": "fp8"}) as engine:
        first, prompt = members(1, 2), members(2, 1)
        engine.ask([first])
        engine.reclaim_all()
        (output,) = engine.ask([prompt], greedy(1, logprobs=5))
        assert report_of(output)["modules_loaded"] == 3
        num_bytes = first.num_cached_tokens * 3 * 2 * 2 * (32 + 4)
        assert engine.call("stats")["bytes_in_memory"] == num_bytes
        keeper = engine.core.model_executor.driver_worker.worker.model_runner.records
        assert keeper.rows.num_bytes == num_bytes
        print("largest error:", largest_error(output, oracle(tiny_model, prompt, 1)[1]))


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
}
ROTARY = [
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("qwen3", {}),
    (
        "gpt_neox",
        {
            "head_dim": None,
            "num_key_value_heads": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
    ),
    ("glm4", {}),
    ("smollm3", {"head_dim": None, "num_hidden_layers": 4}),
]


@pytest.mark.parametrize(("kind", "changes"), ROTARY)
def test_positions_of_other_models(oracle: Oracle, kind: str, changes: dict[str, Any]) -> None:
    model = tiny_model_of(kind, **({"hidden_size": 128} | changes))
    for prompt in (members(1, 2), members(2, 1)):
        oracle(model, prompt, NUM_TOKENS)  # before vLLM changes the classes of Transformers that it runs
    with serving(model, prompt_cache={"host_gib": 0.1}) as engine:
        assert engine.scheduler.loads.call_workers is None
        check(engine, oracle, model, members(1, 2))
        assert engine.scheduler.loads.is_movable
        report = check(engine, oracle, model, members(2, 1))
        assert report["modules_encoded"] == 0
        assert len(engine.encoded) == 3


@pytest.mark.parametrize("kind", ["gpt2"])
def test_learned_positions_are_not_moved(oracle: Oracle, kind: str) -> None:
    model = tiny_model_of(kind, n_layer=2, n_head=4, n_embd=128, n_positions=2048, hidden_size=None)
    with serving(model, prompt_cache={"host_gib": 0.1}, max_model_len=2048) as engine:
        check(engine, oracle, model, members(1, 2))
        assert not engine.scheduler.loads.is_movable
        check(engine, oracle, model, members(2, 1))
        engine.reclaim_all()
        # Loaded only where they were encoded first: the root is in both, the others in the first prompt.
        assert check(engine, oracle, model, members(2, 1))["modules_encoded"] == 2
        engine.reclaim_all()
        assert check(engine, oracle, model, members(1, 2))["modules_encoded"] == 0
