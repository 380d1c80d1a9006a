"""Putting the front end in place in the processes that need one: API servers and scripts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from vllm_promptcache.blocks.wire import EXTRA_ARG
from vllm_promptcache.compat import UnsupportedError
from vllm_promptcache.compat import server as compat_server
from vllm_promptcache.compat.ending import end_calls_with_engine
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import ChatTemplateError, PMLError
from vllm_promptcache.frontend.catalog import share_catalog
from vllm_promptcache.frontend.documents import load_schema_files
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.routing import engine_for

# A child of vLLM's logger, so that it is configured as the others are.
logger = logging.getLogger("vllm.promptcache")


def install(vllm_config: Any, *, serves: bool) -> None:
    """Called where an engine's configuration is made, before anything else is.

    Raises:
        UnsupportedError: there would be a front end or an engine that is not reached.
        PMLError: a schema file is wrong. Better now than after the model is loaded.
    """
    refuse_unsupported(vllm_config, serves=serves)
    if compat_server.num_api_servers(vllm_config) > 1:
        share_catalog()
    config = PromptCacheConfig.from_vllm_config(vllm_config)
    schemas = load_schema_files(config.schemas, config)
    from vllm_promptcache.frontend.admission import admit, admit_from_api

    compat_server.admit_composed_inputs(admit_from_api if serves else admit)
    compat_server.keep_reports_until_finished(EXTRA_ARG)
    compat_server.prime_detokenizers_with_ends(EXTRA_ARG)
    end_calls_with_engine()
    if serves:
        compat_server.route_composed_requests(EXTRA_ARG, engine_for)
        compat_server.extend_api_server(_attach, partial(_open, schemas))


def refuse_unsupported(vllm_config: Any, *, serves: bool) -> None:
    """Refuse set-ups in which schemas would not be known wherever requests come.

    Raises:
        UnsupportedError: one sentence.
    """
    reason = None
    if serves and compat_server.num_api_servers(vllm_config) == 0:
        reason = "another front end than Python's"
    elif not serves and vllm_config.parallel_config.data_parallel_size > 1:
        reason = "data parallelism in a script: it reaches one engine only"
    if reason is not None:
        raise UnsupportedError(f"--enable-prompt-cache does not work with {reason}")


def _attach(app: Any) -> None:
    from vllm_promptcache.server.app import extend

    extend(app)


async def _open(schemas: Any, engine_client: Any, state: Any, args: Any) -> Mapping[tuple[str, str], Any]:
    """Open the front end. Ends the process, with one line that says why, where that cannot be done."""
    from vllm.v1.engine.exceptions import EngineDeadError

    from vllm_promptcache.server.app import open_server

    try:
        return await open_server(schemas, engine_client, state, args)
    except EngineDeadError:
        what = "the engine ended while schemas were encoded: what it has said stands above"
    except (PMLError, RefusedError, ChatTemplateError) as error:
        what = str(error)
    logger.critical("Prompt cache: the server does not start: %s", what)
    raise SystemExit(1)
