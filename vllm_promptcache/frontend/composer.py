"""The composer: from a request's PML to what the engine is asked to run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vllm_promptcache.blocks.wire import Keep, plan_to_wire, prompt_token_ids, units_to_wire
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import AUTO, Repair
from vllm_promptcache.contract.unit import Placement, Unit
from vllm_promptcache.errors import ChatTemplateError, IssueList
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.connection import SMALL_CHARACTERS, SMALL_MODULES
from vllm_promptcache.frontend.documents import LayoutBuilder, RequestDocument
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.lookup import lookup_of
from vllm_promptcache.frontend.memory import DocumentMemory, Key
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.frontend.renewal import Renewal
from vllm_promptcache.frontend.sizes import has_more_text
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.plan.build import build_chat, build_resolved
from vllm_promptcache.plan.conversation import Turns as Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.nodes import PromptNode
from vllm_promptcache.repairs.plain import plain_prompt
from vllm_promptcache.repairs.repaired import repaired, without_reuse

# Prompts of one request. Each is composed by itself, so that few bytes ask for much.
MAX_PROMPTS = 256
_FEW_PROMPTS = 4

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ComposedPrompt:
    """A prompt as the engine is asked to run it.

    ``entry`` is the schema's, if it is over one. At most ``max_new_tokens`` can be generated: positions or
    blocks run out. ``no_room`` says that modules are not reused as the KV cache is too small for them, and
    ``keeps`` what is to be kept of it, and how long.
    """

    plan: Plan
    entry: SchemaEntry | None
    max_new_tokens: int
    no_room: bool = False
    keeps: tuple[Keep, ...] = ()

    @cached_property
    def token_ids(self) -> list[int]:
        """All tokens in position order; not to be changed."""
        return prompt_token_ids(self.plan)

    def prepare(self) -> None:
        """Work out what will be asked of it when it is sent."""
        _ = self.token_ids, self.to_wire()

    def to_wire(self) -> dict[str, Any]:
        """What travels to the engine. To be asked for when the request is sent: whether the engine
        knows the units depends on what it was told before."""
        entry = self.entry
        if entry is None or not entry.is_defined:
            return {**self._wire, "texts": self._texts}
        brought = [unit for unit in self._foreign if unit not in entry.members]
        return {**self._wire, "texts": units_to_wire(brought)} if brought else self._wire

    @cached_property
    def _wire(self) -> dict[str, Any]:
        return plan_to_wire(self.plan, with_texts=False, no_room=self.no_room, keeps=self.keeps)

    @cached_property
    def _texts(self) -> dict[str, Any]:
        return units_to_wire(self.plan.units)

    @cached_property
    def _foreign(self) -> list[Unit]:
        """Units that are not the schema's own: members of its pools, registered or brought by the request."""
        entry = self.entry
        return [] if entry is None else [u for u in self.plan.units if u not in entry.layout.unit_places]


class _Read(NamedTuple):
    """A request's document, the schema that its prompt is over, and what it is remembered by.

    It is ``is_small`` where what is to be worked out takes less time than another thread.
    """

    document: RequestDocument
    entry: SchemaEntry
    key: Key | None
    is_small: bool

    @property
    def prompt(self) -> PromptNode:
        """The document's prompt."""
        return self.document.prompt


class Composer:
    """Turns a request's PML, options and what follows them into composed prompts.

    ``repair`` is carried out for requests that name none.
    Serves the API server and scripts alike. All methods raise PMLError for what is wrong with the
    document (404 for an unknown schema) and RefusedError for what is not allowed or cannot be done.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        capacity: Capacity,
        *,
        allow_request_schemas: bool = True,
        repair: Repair = AUTO,
    ) -> None:
        self._registry = registry
        self._builder: LayoutBuilder = registry.builder
        self._capacity = capacity
        self._allow_request_schemas = allow_request_schemas
        self._repair = repair
        self._memory = DocumentMemory()
        self._renewal = Renewal(registry)

    async def compose_texts(
        self,
        pml: object,
        options: PromptOptions,
        texts: Sequence[str | Sequence[int]],
        *,
        adapter: bool = False,
        salt: str | None = None,
    ) -> list[ComposedPrompt]:
        """One prompt for each text (or its token IDs), which follows the PML as new text.

        An ``adapter`` has states of its own, and so has a cache ``salt``, but of modules that all share. What
        is remembered of a request is found again by those with the same ``salt``.
        """
        if len(texts) > MAX_PROMPTS:
            what = f"prompt: {len(texts)} prompts; pml takes at most {MAX_PROMPTS}"
            raise RefusedError(what, field="prompt")
        for text in texts:
            self._refuse_long(text)
        read = await self._read(pml, salt)
        entry = read.entry
        pinned = self._pinned_for(entry, adapter, salt)

        def compose() -> list[ComposedPrompt]:
            resolution = resolve_prompt(entry.layout, read.prompt, IssueList(), entry.members)
            tails = [self._token_ids(text) for text in texts]
            plans = [build_resolved(entry.layout, resolution, [(ids, "prompt")]) for ids in tails]
            return [self._compose(entry, plan, options, pinned) for plan in plans]

        is_small = read.is_small and len(texts) <= _FEW_PROMPTS
        prompts = await self._run(compose, is_small and sum(map(len, texts)) <= SMALL_CHARACTERS)
        self._remember(read)
        return prompts

    async def compose_chat(
        self,
        pml: object,
        options: PromptOptions,
        turns: Turns,
        *,
        adapter: bool = False,
        salt: str | None = None,
    ) -> ComposedPrompt:
        """The prompt and the turns of a chat as one conversation, and the template's generation prompt."""
        if has_more_text(turns.messages, self._max_characters):
            raise _never_fits("messages", f"more than {self._max_characters} characters")
        read = await self._read(pml, salt)
        entry = read.entry
        pinned = self._pinned_for(entry, adapter, salt)

        def compose() -> ComposedPrompt:
            resolution = resolve_prompt(entry.layout, read.prompt, IssueList(), entry.members)
            try:
                plan = build_chat(entry.layout, resolution, turns)
            except ChatTemplateError as error:
                raise RefusedError(str(error), field="messages") from error
            return self._compose(entry, plan, options, pinned)

        said = (turns.messages, turns.tools, turns.template_options)
        prompt = await self._run(compose, read.is_small and not has_more_text(said, SMALL_CHARACTERS))
        self._remember(read)
        return prompt

    async def lookup(self, plan: Plan, *, is_shared: bool = True) -> dict[str, Any]:
        """What would be looked up for a plan, and where; see `lookup_of`."""
        return await lookup_of(plan, self._capacity, self._registry, is_shared=is_shared)

    async def _run(self, compose: Callable[[], T], is_small: bool) -> T:
        """Compose at once, or where others do not wait for it."""
        return compose() if is_small else await self._registry.connection.run(compose)

    def _compose(
        self,
        entry: SchemaEntry,
        plan: Plan,
        options: PromptOptions,
        pinned: Container[Placement],
    ) -> ComposedPrompt:
        repair = self._repair if options.repair is None else options.repair
        if not self._capacity.keeps_modules:
            plan = plain_prompt(plan)
            return ComposedPrompt(plan, entry, self._builder.max_model_len - plan.next_position)
        plan = repaired(plan, repair)
        room = self._capacity.max_new_tokens(entry.layout, plan, pinned)
        no_room = room == 0
        if no_room:
            plan = without_reuse(plan)
            room = self._capacity.max_new_tokens(entry.layout, plan, ())
        positions = self._builder.max_model_len - plan.next_position
        prompt = ComposedPrompt(plan, entry, min(room, positions), no_room)
        prompt.prepare()
        return prompt

    def _pinned_for(self, entry: SchemaEntry, adapter: bool, salt: str | None) -> Container[Placement]:
        """The units that are pinned already for a request with an adapter, or a salt."""
        if adapter:
            return ()
        if salt is None:
            return entry.pinned
        is_shared = self._registry.telling.is_shared(entry)
        return entry.pinned.intersection(entry.placements) if is_shared else ()

    async def _read(self, pml: object, salt: str | None) -> _Read:
        """The schema and the prompt of a request's document."""
        if not isinstance(pml, str):
            raise RefusedError("pml: must be a string with a document", kind="PMLError", field="pml")
        await self._registry.catch_up()
        stamp = self._builder.encoder.catch_up()
        key, document = await self._document(pml, salt, stamp)
        prompt, own = document.prompt, document.entries
        await self._renewal.renew(prompt.schema, stamp)
        layouts: Mapping[str, SchemaLayout] = self._registry.layouts
        if own:
            layouts = ChainMap({name: entry.layout for name, entry in own.items()}, self._registry.layouts)
        digest = find_layout(prompt, layouts).digest
        entry = self._registry.entries.get(prompt.schema)
        # The engine knows a registered schema: its own copy need not travel.
        if entry is None or entry.layout.digest != digest:
            entry = own[prompt.schema]
        is_small = len(pml) <= SMALL_CHARACTERS and len(entry.layout.modules) <= SMALL_MODULES
        return _Read(document, entry, key, is_small)

    async def _document(self, pml: str, salt: str | None, stamp: str) -> tuple[Key | None, RequestDocument]:
        """A request's document, and what it is remembered by if it is to be."""
        key = self._memory.key(stamp + pml, salt) if "<schema" in pml else None
        if key is not None and (found := self._memory.get(key)) is not None:
            return key, found
        read = partial(self._builder.document_of, pml, allow_schemas=self._allow_request_schemas)
        if key is None and len(pml) <= SMALL_CHARACTERS:
            return None, read()

        def read_counted() -> RequestDocument:
            document = read()
            _ = document.num_bytes
            return document

        document = await self._registry.connection.run(read_counted)
        return (key if document.entries else None), document

    def _remember(self, document: _Read) -> None:
        """Keep the document of a request in which everything was right."""
        if document.key is not None:
            self._memory.put(document.key, document.document)

    def _token_ids(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            return self._builder.encoder.encode(text)
        # Scripts may bring arrays, or lists of their numbers.
        return list(np.asarray(text, np.int64).tolist())

    @property
    def _max_characters(self) -> int:
        """No text with more of them fits the model's positions; as vLLM takes it."""
        return self._builder.max_model_len * self._builder.encoder.max_characters

    def _refuse_long(self, text: str | Sequence[int]) -> None:
        """Refuse what can never fit before it is tokenized."""
        if isinstance(text, str) and len(text) > self._max_characters:
            raise _never_fits("prompt", f"more than {self._max_characters} characters")
        if not isinstance(text, str) and len(text) > self._builder.max_model_len:
            raise _never_fits("prompt", f"more than {self._builder.max_model_len} tokens")


def _never_fits(field: str, what: str) -> RefusedError:
    return RefusedError(f"{field}: {what} never fit the model's positions", field=field)
