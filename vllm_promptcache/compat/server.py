"""As `compat`, for the processes that requests come to: API servers and scripts."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from vllm_promptcache.compat import carries, wrap_once


def num_api_servers(vllm_config: Any) -> int:
    """How many of vLLM's Python API servers there will be; 0 for its other front end."""
    import vllm.envs as envs

    if envs.VLLM_USE_RUST_FRONTEND and envs.VLLM_RUST_FRONTEND_PATH:
        return 0
    return int(vllm_config.parallel_config._api_process_count)


def admit_composed_inputs(admit: Callable[[Any, Any], Any]) -> None:
    """Have ``admit(input, params)`` say with which parameters an input enters the engine.

    Target: InputProcessor.process_inputs. Why: all of a server's and a script's requests pass there,
    right before they are sent, and one API request can hold several prompts but one set of parameters
    (patches/: input-params-hooks).
    """
    from vllm.v1.engine.input_processor import InputProcessor

    def make(original: Any) -> Any:
        def process_inputs(
            self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any
        ) -> Any:
            return original(self, request_id, prompt, admit(prompt, params), *args, **kwargs)

        return process_inputs

    wrap_once(InputProcessor, "process_inputs", make, "request_id", "prompt", "params")


def keep_reports_until_finished(key: str) -> None:
    """Attach what ``kv_transfer_params[key]`` said of a request to its last output as well.

    Target: RequestState.make_request_output. Why: a request that ends at a stop string is ended by the
    front end, so the engine's last word on it never arrives (patches/: early-transfer-params).
    """
    from vllm.v1.engine.output_processor import RequestState

    def make(original: Any) -> Any:
        def make_request_output(
            self: Any,
            new_token_ids: Any,
            pooling_output: Any,
            finish_reason: Any,
            stop_reason: Any,
            kv_transfer_params: Any = None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            if kv_transfer_params and key in kv_transfer_params:
                self.prompt_cache_report = kv_transfer_params[key]
            elif finish_reason is not None and hasattr(self, "prompt_cache_report"):
                kv_transfer_params = {**(kv_transfer_params or {}), key: self.prompt_cache_report}
            return original(
                self,
                new_token_ids,
                pooling_output,
                finish_reason,
                stop_reason,
                kv_transfer_params,
                *args,
                **kwargs,
            )

        return make_request_output

    names = ("new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params")
    wrap_once(RequestState, "make_request_output", make, *names)


def prime_detokenizers_with_ends(key: str, num_tokens: int = 32) -> None:
    """Prime the detokenizers of requests with ``extra_args[key]`` with the last tokens of their prompts.

    Target: FastIncrementalDetokenizer.__init__. Why: when the first new token is there, its stream
    decodes the whole prompt on that token's way to the client, though only the prompt's end has a say in how
    a token is shown (patches/: priming-tokens).
    """
    from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

    def make(original: Any) -> Any:
        def __init__(self: Any, tokenizer: Any, request: Any) -> None:
            if carries(request.sampling_params, key) and request.prompt_token_ids:
                skips = request.sampling_params.skip_special_tokens
                decode = functools.partial(tokenizer._tokenizer.decode, skip_special_tokens=skips)
                request = copy.copy(request)
                request.prompt_token_ids = end_of_prompt(request.prompt_token_ids, decode, num_tokens)
            original(self, tokenizer, request)

        return __init__

    wrap_once(FastIncrementalDetokenizer, "__init__", make, "tokenizer", "request")


def end_of_prompt(token_ids: list[int], decode: Callable[[list[int]], str], num_tokens: int) -> list[int]:
    """The last ``num_tokens`` tokens, or more if it takes more to show text that ends in a whole character.

    Primed with less, a stream would take the next token for the first of a text, or send what it was primed
    with along with the rest of the character.
    """
    while num_tokens < len(token_ids):
        end = token_ids[-num_tokens:]
        text = decode(end)
        if text and not text.endswith("\ufffd"):
            return end
        num_tokens *= 2
    return token_ids


def route_composed_requests(key: str, choose: Callable[[Any, list[float]], int]) -> None:
    """Have ``choose(extra_args[key], loads)`` say to which of several engines a request goes that has one.

    ``loads`` are the engines' unfinished requests, as vLLM's own balancing estimates them. A rank that the
    request names stays. Target: DPLBAsyncMPClient.get_core_engine_for_request. Why: what a request reuses
    is in one engine, which its balancing does not know.
    """
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    def make(original: Any) -> Any:
        def get_core_engine_for_request(self: Any, request: Any) -> Any:
            if request.data_parallel_rank is None and carries(request.sampling_params, key):
                loads = [
                    float(max(self.client_count * self.engine_inflight[engine], waiting + running))
                    for engine, (waiting, running, *_) in zip(self.core_engines, self.lb_engines, strict=True)
                ]
                request.data_parallel_rank = choose(request.sampling_params.extra_args[key], loads)
            return original(self, request)

        return get_core_engine_for_request

    wrap_once(DPLBAsyncMPClient, "get_core_engine_for_request", make, "self", "request")


def extend_api_server(
    attach: Callable[[Any], None], open_server: Callable[[Any, Any, Any], Awaitable[Mapping[Any, Any]]]
) -> None:
    """Call ``attach(app)`` when vLLM's routes are there, and ``await open_server(engine client, state,
    args)`` before its serving classes are constructed; it returns what to construct in their place, by
    module and name.

    Targets: attach_endpoint_plugins in vllm.entrypoints.launchers.app and init_generate_state. Why:
    endpoint plugins are loaded only when VLLM_PLUGINS names them, which then filters all plugins, and
    serving classes are written into init_generate_state (patches/: serving-classes,
    endpoint-plugin-registration).
    """
    from vllm.entrypoints.generate import api_router
    from vllm.entrypoints.launchers import app as app_module

    def make_attach(original: Any) -> Any:
        def attach_endpoint_plugins(app: Any, *args: Any, **kwargs: Any) -> None:
            original(app, *args, **kwargs)
            attach(app)

        return attach_endpoint_plugins

    def make_init(original: Any) -> Any:
        async def init_generate_state(
            engine_client: Any, state: Any, args: Any, *rest: Any, **kwargs: Any
        ) -> None:
            with _names_replaced(await open_server(engine_client, state, args)):
                await original(engine_client, state, args, *rest, **kwargs)

        return init_generate_state

    wrap_once(app_module, "attach_endpoint_plugins", make_attach, "app", "supported_tasks")
    wrap_once(api_router, "init_generate_state", make_init, "engine_client", "state", "args")


@contextlib.contextmanager
def _names_replaced(replacements: Mapping[Any, Any]) -> Iterator[None]:
    """Other values for (module, name) pairs meanwhile."""
    originals = {(module, name): getattr(module, name) for module, name in replacements}
    for (module, name), value in replacements.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in originals.items():
            setattr(module, name, value)
