"""The scheduler's own store and control behind a connection, without a model: encoding is done at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

with warnings.catch_warnings():
    # What PyTorch says of itself while it is imported is no error of the tests that take warnings as such.
    warnings.simplefilter("ignore")
    from vllm.v1.core.block_pool import BlockPool

from tests.byte_tokenizer import CHATML, byte_tokenizer
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.engine.expiry import Expiry
from vllm_promptcache.engine.loading import Loads
from vllm_promptcache.engine.module_control import ModuleControl
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.recording import Recordings
from vllm_promptcache.engine.stored_unit import Residency, StoredUnit
from vllm_promptcache.engine.unit_catalog import UnitCatalog
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.composer import Composer
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.documents import LayoutBuilder
from vllm_promptcache.frontend.marked import MarkComposer
from vllm_promptcache.frontend.pools import PoolRegistry
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.frontend.service import PromptCacheService
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.records.catalog import RecordCatalog

T = TypeVar("T")

BLOCK_SIZE = 16
MAX_MODEL_LEN = 1024


class StoreConnection:
    """A connection to a block pool of `num_blocks`, of which `pin_limit` may be pinned."""

    def __init__(self, num_blocks: int = 200, pin_limit: int = 20, link_tokens: int = 0) -> None:
        self.pool = BlockPool(num_blocks + 1, enable_caching=True, hash_block_size=BLOCK_SIZE)
        self.store = ModuleStore(self.pool, BLOCK_SIZE, pin_limit, MAX_MODEL_LEN)
        self.catalog = UnitCatalog()
        self.store.known.is_shared = self.catalog.is_shared
        loads = Loads(self.store, Recordings(RecordCatalog(0, 0, lambda rows: rows)), lambda *_: None)
        expiry = Expiry(self.store, lambda unit: self.catalog.ttl_of(unit.key.digest), loads.unpin)
        self.control = ModuleControl(self.store, self.catalog, self, lambda: None, loads, expiry, link_tokens)
        self.calls: list[str] = []

    async def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        self.calls.append(operation)
        return self.control.call(operation, payload)

    async def pause(self) -> None:
        """Nothing is ever left to encode."""

    async def run(self, function: Callable[[], T]) -> T:
        return function()

    def start_background(self) -> None:
        """Everything in the backlog is resident at once."""
        while (unit := self.store.backlog.next()) is not None:
            self._encode(unit)

    def reconsider(self, unit: StoredUnit) -> None:
        """Nothing is ever on its way."""

    def _encode(self, unit: StoredUnit) -> None:
        for key in unit.context:
            self._encode(self.store.known[key])
        if unit.residency is Residency.ABSENT:
            self.store.resident.begin(unit)
            self.store.resident.allocate(unit)
            self.store.resident.finish(unit)
            self.store.backlog.end_warming(unit)
            self.store.resident.end_use((unit.key,))


class FrontEnd:
    """A registry and a composer over a `StoreConnection`, called as a script calls them."""

    def __init__(
        self, connection: StoreConnection | None = None, template: str = CHATML, **settings: Any
    ) -> None:
        self.connection = connection or StoreConnection()
        self.config = PromptCacheConfig(**settings)
        encoder = TextEncoder(byte_tokenizer(chat_template=template))
        builder = LayoutBuilder(encoder, MAX_MODEL_LEN, self.config)
        self.registry = SchemaRegistry(self.connection, builder, self.config.max_schemas, None)
        self.composer = Composer(
            self.registry,
            Capacity.from_stats(run_sync(self.registry.stats()), MAX_MODEL_LEN),
            allow_request_schemas=self.config.allow_request_schemas,
            repair=self.config.repair,
        )

        self.pools = PoolRegistry(self.registry, self.config.max_pool_members)
        self.marks = MarkComposer(
            self.connection,
            encoder,
            Capacity.from_stats(run_sync(self.registry.stats()), MAX_MODEL_LEN),
            MAX_MODEL_LEN,
            self.config.min_mark_tokens,
            self.config.repair,
        )

    @property
    def service(self) -> PromptCacheService:
        """What HTTP is served with."""
        return PromptCacheService(self.config, self.registry, self.composer, self.marks, self.pools)

    def register(self, *documents: str, pin: bool = False) -> list[bool]:
        """Registers documents one by one; whether each was new."""
        return [run_sync(self.registry.register(d, pin=pin)).is_new for d in documents]

    def residencies(self, name: str) -> list[str]:
        """Residency of a schema's units."""
        status = run_sync(self.registry.status(self.registry[name]))
        return [str(unit["residency"]) for unit in status.values()]


def schema(name: str, **modules: str) -> str:
    """A schema whose own text is its name, with modules."""
    inner = "".join(f'<module name="{module}">{text}</module>' for module, text in modules.items())
    return f'<schema name="{name}">{name}{inner}</schema>'


@contextmanager
def nothing_changes(front_end: FrontEnd) -> Iterator[None]:
    """Checks that neither the registry nor the engine is left with anything else than before."""
    before = _state(front_end)
    yield
    assert _state(front_end) == before


def _state(front_end: FrontEnd) -> Any:
    connection, registry = front_end.connection, front_end.registry
    return (
        {name: (entry, set(entry.pinned), entry.is_defined) for name, entry in registry.entries.items()},
        dict(registry.layouts),
        dict(connection.catalog._holders),
        {key: unit.pinned for key, unit in connection.store.known.by_key.items() if unit.pinned},
    )
