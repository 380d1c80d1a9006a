"""The composer: from a request's PML to what the engine is asked to run."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from vllm_promptcache.blocks.wire import plan_to_wire, prompt_token_ids
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.contract.repair import AUTO, Repair
from vllm_promptcache.contract.unit import Unit
from vllm_promptcache.errors import ChatTemplateError, IssueList
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.documents import DocumentMemory, LayoutBuilder, RequestDocument
from vllm_promptcache.frontend.entry import SchemaEntry
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.plan.build import build_chat, build_resolved
from vllm_promptcache.plan.conversation import Turns as Turns
from vllm_promptcache.plan.resolve import resolve_prompt
from vllm_promptcache.pml.nodes import PromptNode
from vllm_promptcache.repairs.repaired import repaired, without_reuse

# Documents up to so many characters are parsed at once: a thread would take longer.
SMALL_DOCUMENT = 32 * 1024


@dataclass(frozen=True, eq=False)
class ComposedPrompt:
    """A prompt as the engine is asked to run it.

    ``entry`` is the schema's, if it is over one. At most ``max_new_tokens`` can be generated: positions or
    blocks run out. ``no_room`` says that modules are not reused as the KV cache is too small for them.
    """

    plan: Plan
    entry: SchemaEntry | None
    max_new_tokens: int
    no_room: bool = False

    @cached_property
    def token_ids(self) -> list[int]:
        """All tokens in position order; not to be changed."""
        return prompt_token_ids(self.plan)

    def to_wire(self) -> dict[str, Any]:
        """What travels to the engine. To be asked for when the request is sent: whether the engine
        knows the units depends on what it was told before."""
        return plan_to_wire(
            self.plan,
            with_texts=self.entry is None or not self.entry.is_defined,
            texts=self._brought_units(),
            no_room=self.no_room,
        )

    def _brought_units(self) -> Sequence[Unit]:
        """Units that came with the request, over a schema that the engine knows."""
        entry = self.entry
        return [] if entry is None else [unit for unit in self.plan.units if not entry.defines(unit)]


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

    async def compose_texts(
        self,
        pml: object,
        options: PromptOptions,
        texts: Sequence[str | Sequence[int]],
        *,
        tenant: bool = False,
    ) -> list[ComposedPrompt]:
        """One prompt for each text (or its token IDs), which follows the PML as new text.

        A ``tenant`` has states of its own: an adapter, or a cache salt.
        """
        tails = [self._token_ids(text) for text in texts]
        entry, prompt = await self._read(pml)
        resolution = resolve_prompt(entry.layout, prompt, IssueList(), entry.members)
        plans = [build_resolved(entry.layout, resolution, [(ids, "prompt")]) for ids in tails]
        return [await self._compose(entry, plan, options, tenant) for plan in plans]

    async def compose_chat(
        self, pml: object, options: PromptOptions, turns: Turns, *, tenant: bool = False
    ) -> ComposedPrompt:
        """The prompt and the turns of a chat as one conversation, and the template's generation prompt."""
        entry, prompt = await self._read(pml)
        resolution = resolve_prompt(entry.layout, prompt, IssueList(), entry.members)
        try:
            plan = build_chat(entry.layout, resolution, turns)
        except ChatTemplateError as error:
            raise RefusedError(str(error), field="messages") from error
        return await self._compose(entry, plan, options, tenant)

    async def _compose(
        self,
        entry: SchemaEntry,
        plan: Plan,
        options: PromptOptions,
        tenant: bool,
    ) -> ComposedPrompt:
        repair = self._repair if options.repair is None else options.repair
        plan = repaired(plan, repair)
        room = self._capacity.max_new_tokens(entry.layout, plan, () if tenant else entry.pinned)
        no_room = room == 0
        if no_room:
            plan = without_reuse(plan)
            room = self._capacity.max_new_tokens(entry.layout, plan, ())
        positions = self._builder.max_model_len - plan.next_position
        return ComposedPrompt(plan, entry, min(room, positions), no_room)

    async def _read(self, pml: object) -> tuple[SchemaEntry, PromptNode]:
        """The schema and the prompt of a request's document."""
        if not isinstance(pml, str):
            raise RefusedError("pml: must be a string with a document", kind="PMLError", field="pml")
        await self._registry.catch_up()
        document = await self._document(pml)
        prompt, own = document.prompt, document.entries
        layouts: Mapping[str, SchemaLayout] = self._registry.layouts
        if own:
            layouts = ChainMap({name: entry.layout for name, entry in own.items()}, self._registry.layouts)
        digest = find_layout(prompt, layouts).digest
        registered = self._registry.entries.get(prompt.schema)
        # The engine knows a registered schema: its own copy need not travel.
        if registered is not None and registered.layout.digest == digest:
            return registered, prompt
        return own[prompt.schema], prompt

    async def _document(self, pml: str) -> RequestDocument:
        has_schemas = "<schema" in pml
        if has_schemas and (found := self._memory.get(pml)) is not None:
            return found
        read = partial(self._builder.document_of, pml, allow_schemas=self._allow_request_schemas)
        if not has_schemas and len(pml) <= SMALL_DOCUMENT:
            return read()
        document = await self._registry.link.run(read)
        if document.entries:
            self._memory.put(pml, document)
        return document

    def _token_ids(self, text: str | Sequence[int]) -> list[int]:
        if isinstance(text, str):
            return self._builder.encoder.encode(text)
        # Scripts may bring arrays, or lists of their numbers.
        return list(np.asarray(text, np.int64).tolist())
