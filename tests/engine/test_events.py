"""KV events: whoever subscribes knows which modules an engine has, and is told nothing wrong of prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from tests.engine.plans import members, placements_of, random_tokens, simple, travel
from tests.engine.support import Engine, greedy, serving
from vllm_promptcache.blocks.wire import prompt_token_ids
from vllm_promptcache.engine.stored_unit import Residency

ENDPOINT = "inproc://kv-events"
Module = tuple[str, int]


class Router:
    """As one outside: from events alone, the modules that are there, and the prefixes."""

    def __init__(self, engine: Engine) -> None:
        self._num_published = self._num_heard = 0
        publisher = engine.scheduler.kv_event_publisher
        publish = publisher.publish

        def counted(batch: KVEventBatch) -> None:
            self._num_published += 1
            publish(batch)

        publisher.publish = counted
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.connect(ENDPOINT)
        self._socket.subscribe("")
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self.modules: dict[Module, list[int]] = {}
        self.prefixes: dict[bytes, tuple[bytes | None, list[int]]] = {}
        self._blocks: dict[bytes, Module] = {}

    def hear(self) -> None:
        """All that was published."""
        while self._num_heard < self._num_published:
            assert self._socket.poll(20_000), "what was published does not come"
            self._num_heard += 1
            _, _, payload = self._socket.recv_multipart()
            for event in self._decoder.decode(payload).events:
                self._note(event)

    def _note(self, event: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        if isinstance(event, AllBlocksCleared):
            self.modules.clear()
            self.prefixes.clear()
            self._blocks.clear()
        elif isinstance(event, BlockRemoved):
            for block in event.block_hashes:
                self.prefixes.pop(block, None)
                self.modules.pop(self._blocks.pop(block, ("", 0)), None)
        elif (keys := (event.extra_keys or [None])[0]) and keys[0] == "prompt_cache":
            module = (keys[1], keys[2])
            assert module not in self.modules
            assert len(event.token_ids) == len(event.block_hashes) * event.block_size
            self.modules[module] = list(event.token_ids)
            self._blocks |= dict.fromkeys(event.block_hashes, module)
            assert (
                event.parent_block_hash not in self.prefixes and event.parent_block_hash not in self._blocks
            )
        else:
            size = event.block_size
            parent = event.parent_block_hash
            for index, block in enumerate(event.block_hashes):
                self.prefixes[block] = (parent, list(event.token_ids[index * size : (index + 1) * size]))
                parent = block

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def engine_and_router(tiny_model: Path) -> Iterator[tuple[Engine, Router]]:
    config = KVEventsConfig(enable_kv_cache_events=True, endpoint=ENDPOINT)
    settings = {"num_gpu_blocks_override": 130, "max_model_len": 4096, "max_num_batched_tokens": 512}
    with serving(tiny_model, kv_events_config=config, **settings) as engine:
        router = Router(engine)
        yield engine, router
        router.close()


def modules_of(engine: Engine) -> set[Module]:
    """Those that have whole blocks."""
    units = engine.store.known.by_key.values()
    return {(u.key.digest, u.key.position) for u in units if u.residency is Residency.RESIDENT and u.blocks}


def test_modules_come_and_go(engine_and_router: tuple[Engine, Router]) -> None:
    engine, router = engine_and_router
    prompt = simple("a")
    engine.ask([prompt])
    router.hear()
    (unit,) = prompt.units
    assert router.modules == {(unit.digest, 0): unit.token_list[:96]}
    assert not router.prefixes  # what is new behind a module is no prefix of anything
    plain = random_tokens(100, "plain").tolist()
    engine.ask([plain])
    router.hear()
    assert [tokens for _, tokens in router.prefixes.values()] == [plain[i : i + 32] for i in (0, 32, 64)]
    # A moved member is where it stands; units too short for a block are not told of.
    engine.ask([members(1, 2), members(2, 1)])
    router.hear()
    wanted = {(p.digest, p.position) for m in (members(1, 2), members(2, 1)) for p in placements_of(m)}
    assert router.modules.keys() == modules_of(engine) == {(unit.digest, 0), *wanted}
    engine.reclaim_all()
    engine.ask([plain])
    router.hear()
    assert not router.modules and router.prefixes
    engine.ask([prompt])
    engine.forget_everything()
    engine.ask([simple("b")])
    router.hear()
    assert router.modules.keys() == modules_of(engine) and len(router.modules) == 1


def test_a_rush_that_evicts_and_preempts(engine_and_router: tuple[Engine, Router]) -> None:
    engine, router = engine_and_router
    for i in range(12):
        engine.add(travel(f"{i % 5}") if i % 3 else simple(f"long {i}", 900), greedy(20))
        if i % 4 == 1:
            text = prompt_token_ids(simple(f"long {i}", 900))
            engine.add(text, greedy(4))
        engine.step()
    engine.finish()
    assert engine.call("stats")["evictions"]
    engine.ask([random_tokens(40, "last").tolist()])
    router.hear()
    assert router.modules.keys() == modules_of(engine)
    # Prefixes are chains of plain prompts.
    for parent, _ in router.prefixes.values():
        assert parent is None or parent not in router._blocks
