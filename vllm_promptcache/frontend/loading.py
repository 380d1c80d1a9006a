"""The operator's schemas: loaded, encoded and pinned before anything is served."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.pml.nodes import SchemaNode

# A child of vLLM's logger, so that it is configured as the others are; vLLM itself need not be there.
logger = logging.getLogger("vllm.promptcache")

# Pauses between two lines about progress.
_PAUSES_PER_LINE = 40


async def load_and_pin(registry: SchemaRegistry, schemas: Iterable[tuple[str, SchemaNode]]) -> None:
    """Register schemas with the files they come from, pin what may be pinned, and wait until all of
    that is encoded.

    Raises:
        PMLError: with the mistakes of all schemas.
        RefusedError: there are more schemas than are allowed.
    """
    schemas = list(schemas)
    if not schemas:
        return
    layouts = await registry.connection.run(lambda: registry.builder.build([schema for _, schema in schemas]))
    for (path, _), layout in zip(schemas, layouts, strict=True):
        await registry.register_layouts([layout], source=path)
        num_tokens = sum(module.num_tokens for module in layout.modules)
        logger.info(
            "Prompt cache: schema %r from %s: %d modules, %d tokens, %d positions.",
            layout.name,
            path,
            len(layout.modules) - 1,
            num_tokens,
            layout.num_positions,
        )
        try:
            await registry.pin(layout.name)
        except RefusedError as error:
            logger.warning(
                "Prompt cache: schema %r is served unpinned, its modules are encoded on demand: %s.",
                layout.name,
                error,
            )
    await wait_until_encoded(registry)


async def wait_until_encoded(registry: SchemaRegistry) -> None:
    """Wait until the engine encodes nothing more, with progress in the log."""
    pauses = 0
    stats = await registry.stats()
    while stats["units_encoding"]:
        if pauses % _PAUSES_PER_LINE == 0:
            logger.info("Prompt cache: %d modules to encode.", stats["units_encoding"])
        pauses += 1
        await registry.connection.pause()
        stats = await registry.stats()
    logger.info(
        "Prompt cache: %d modules resident, %d of %d blocks pinned.",
        stats["units_resident"],
        stats["blocks_pinned"],
        stats["blocks_pin_limit"],
    )
