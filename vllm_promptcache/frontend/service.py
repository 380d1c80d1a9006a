"""The front end of one server: its registry and composer, and what serving classes need of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.catalog import Catalog
from vllm_promptcache.frontend.composer import Composer
from vllm_promptcache.frontend.connection import EngineConnection
from vllm_promptcache.frontend.documents import LayoutBuilder
from vllm_promptcache.frontend.loading import load_and_pin
from vllm_promptcache.frontend.marked import MarkComposer
from vllm_promptcache.frontend.pools import PoolRegistry
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.pml.nodes import SchemaNode


@dataclass(frozen=True)
class PromptCacheService:
    """Everything that stands between requests and one engine."""

    config: PromptCacheConfig
    registry: SchemaRegistry
    composer: Composer
    marks: MarkComposer
    pools: PoolRegistry


async def open_service(
    connection: EngineConnection,
    vllm_config: Any,
    encoder: TextEncoder,
    schemas: list[tuple[str, SchemaNode]],
) -> PromptCacheService:
    """Open the front end of an engine that runs; ``schemas`` are encoded and pinned first.

    Raises:
        PMLError: with the mistakes of all schemas that do not fit the model.
    """
    config = PromptCacheConfig.from_vllm_config(vllm_config)
    max_model_len = vllm_config.model_config.max_model_len
    builder = LayoutBuilder(encoder, max_model_len, config)
    registry = SchemaRegistry(
        connection,
        builder,
        config.max_schemas,
        Catalog.of_server(config.dir),
        shares_operators=config.share_operator_schemas,
    )
    capacity = Capacity.from_stats(await registry.stats(), max_model_len)
    composer = Composer(
        registry, capacity, allow_request_schemas=config.allow_request_schemas, repair=config.repair
    )
    await registry.open()
    await load_and_pin(registry, schemas)
    marks = MarkComposer(connection, encoder, capacity, max_model_len, config.min_mark_tokens, config.repair)
    return PromptCacheService(
        config, registry, composer, marks, PoolRegistry(registry, config.max_pool_members)
    )
