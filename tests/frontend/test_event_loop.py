"""What runs on the event loop, counted: calls of functions and characters tokenized, never seconds."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from tests.byte_tokenizer import CHATML, byte_tokenizer
from tests.frontend.support import FrontEnd, StoreConnection
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.composer import Composer, Turns
from vllm_promptcache.frontend.connection import SMALL_CHARACTERS
from vllm_promptcache.frontend.documents import LayoutBuilder
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.layout.encoder import TextEncoder

T = TypeVar("T")

# One request, of whatever size, asks so much of the event loop at most (docs/security.md).
MAX_CALLS = 5_000
MAX_CHARACTERS = 4 * SMALL_CHARACTERS

NUM_MODULES = 2000


class ThreadedConnection(StoreConnection):
    """As a server's: long work runs in a thread."""

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)


class CountingTokenizer:
    """A tokenizer that keeps how many characters it was given in which thread."""

    def __init__(self) -> None:
        self._tokenizer: Any = byte_tokenizer(chat_template=CHATML)
        self.encoded: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **given: Any) -> Any:
        thread = threading.get_ident()
        self.encoded[thread] = self.encoded.get(thread, 0) + len(text)
        return self._tokenizer.encode(text, **given)


class Loop:
    """A front end with an event loop of its own, and what a request asks of it."""

    def __init__(self) -> None:
        self.tokenizer = CountingTokenizer()
        self.connection = ThreadedConnection(num_blocks=100_000, pin_limit=1000)
        builder = LayoutBuilder(TextEncoder(self.tokenizer), 60_000, PromptCacheConfig())
        self.registry = SchemaRegistry(self.connection, builder, 1000, None)
        self.composer = Composer(self.registry, Capacity(16, 100_000))
        self.num_calls = 0
        self.num_characters = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a request, counting. Raises what it raises."""
        self.num_calls = 0
        self.tokenizer.encoded.clear()

        def count(frame: Any, event: str, argument: Any) -> None:
            self.num_calls += event in ("call", "c_call")

        found: list[T] = []

        async def counted() -> None:
            sys.setprofile(count)  # of this thread alone
            try:
                found.append(await work)
            finally:
                sys.setprofile(None)

        try:
            asyncio.run(counted())
            return found[0]
        finally:
            self.num_characters = self.tokenizer.encoded.get(threading.get_ident(), 0)


@pytest.fixture(scope="module")
def loop() -> Loop:
    """With a registered schema of many modules whose own text stands between them."""
    loop = Loop()
    inner = "".join(f"<module name='m{i}'>x</module>y" for i in range(NUM_MODULES))
    parameters = "".join(f"<parameter name='p{i}' length='40'/>" for i in range(40))
    small = f"<schema name='small'>a b<module name='m'>c{parameters}</module></schema>"
    loop.run(loop.registry.register(f"<pml><schema name='many'>{inner}</schema>{small}</pml>"))
    return loop


def texts(*given: Any) -> Callable[[Composer], Any]:
    pml, prompts = given[0], list(given[1:])
    return lambda composer: composer.compose_texts(pml, PromptOptions(), prompts)


def chat(pml: str, content: str, **given: Any) -> Callable[[Composer], Any]:
    turns = Turns([{"role": "user", "content": content}], **given)
    return lambda composer: composer.compose_chat(pml, PromptOptions(), turns)


SMALL = "<prompt schema='small'/>"
OWN = "<pml><schema name='own'>{}</schema><prompt schema='own'>{}</prompt></pml>"
TOOL = {"type": "function", "function": {"name": "f", "description": "word " * 100_000}}
REQUESTS: dict[str, Callable[[Composer], Any]] = {
    "a prompt of 16 MB": texts(SMALL, "word " * 3_200_000),
    "a prompt of 200 kB": texts(SMALL, "word " * 40_000),
    "a million token IDs": texts(SMALL, [1] * 1_000_000),
    "many prompts": texts(SMALL, *["x"] * 5000),
    "256 prompts": texts("<prompt schema='many'/>", *["x"] * 256),
    "a message of 16 MB": chat(SMALL, "word " * 3_200_000),
    "a message of 200 kB": chat(SMALL, "word " * 40_000),
    "large tools": chat(SMALL, "x", tools=[TOOL] * 4),
    "a small prompt over many modules": texts("<prompt schema='many'/>", "x"),
    "text in a prompt": texts(f"<prompt schema='small'>{'word ' * 100_000}</prompt>", "x"),
    "many inclusions": texts(
        "<prompt schema='many'>" + "".join(f"<m{i}/>" for i in range(NUM_MODULES)) + "</prompt>", "x"
    ),
    "unknown names": texts("<prompt schema='many'>" + "".join(f"<m{i}x/>" for i in range(100)) + "</prompt>"),
    "long unknown names": texts(
        "<prompt schema='many'>" + "".join(f"<m{'ab' * 30}{i}/>" for i in range(100)) + "</prompt>", "x"
    ),
    "letters": texts(
        OWN.format("".join(f"<module name='m{i}'>x</module>" for i in range(NUM_MODULES)), ""), "x"
    ),
    "arguments": texts(
        "<prompt schema='small'><m " + " ".join(f"a{i}='x'" for i in range(16_000)) + "/></prompt>", "x"
    ),
    "one argument": texts(f"<prompt schema='small'><m p1='{'word ' * 200_000}'/></prompt>", "x"),
    "mistakes": texts(OWN.format("<modul/>" * 20_000, ""), "x"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_asks_little_of_the_event_loop(loop: Loop, name: str) -> None:
    for _ in range(2):  # whether it is remembered or not
        try:
            found = loop.run(REQUESTS[name](loop.composer))
        except (PMLError, RefusedError):
            found = None
        assert loop.num_calls <= MAX_CALLS, loop.num_calls
        assert loop.num_characters <= MAX_CHARACTERS, loop.num_characters
    prompts = found if isinstance(found, list) else [found] if found is not None else []
    for prompt in prompts:
        loop.run(sent(prompt))
        assert loop.num_calls <= 100  # what travels was worked out before


async def sent(prompt: Any) -> Any:
    """What is asked of a prompt when it is sent."""
    return prompt.to_wire(), prompt.token_ids


@pytest.mark.parametrize("name", ["a prompt of 16 MB", "a million token IDs", "a message of 16 MB"])
def test_what_never_fits_is_not_tokenized(loop: Loop, name: str) -> None:
    with pytest.raises(RefusedError, match="never fit"):
        loop.run(REQUESTS[name](loop.composer))
    assert sum(loop.tokenizer.encoded.values()) < 1000


def test_small_requests_need_no_thread() -> None:
    loop = Loop()
    loop.run(loop.registry.register("<schema name='small'>a<module name='m'>b</module></schema>"))
    threads: list[str] = []

    async def run(function: Callable[[], T]) -> T:
        threads.append("run")
        return function()

    loop.connection.run = run  # type: ignore[method-assign,assignment]
    loop.run(texts("<prompt schema='small'><m/></prompt>", "x" * 1000)(loop.composer))
    loop.run(chat("<prompt schema='small'><m/></prompt>", "x" * 1000)(loop.composer))
    assert threads == []


def test_a_front_end_in_a_script_needs_no_loop() -> None:
    assert FrontEnd().register("<schema name='s'>x</schema>") == [True]
