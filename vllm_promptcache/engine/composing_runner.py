"""What model runners of both generations share: slots taken, layers found, a step's effects taken back."""

from __future__ import annotations

import contextlib
from typing import Any

from vllm_promptcache import compat
from vllm_promptcache.engine import models
from vllm_promptcache.engine.cache_writer import CacheWriter
from vllm_promptcache.engine.messages import StepMessage
from vllm_promptcache.engine.record_keeper import RecordKeeper
from vllm_promptcache.engine.record_settings import open_keeper, open_rotation
from vllm_promptcache.engine.row_view import present
from vllm_promptcache.engine.step import Step
from vllm_promptcache.engine.step_composer import StepComposer


class ComposingRunner:
    """Mixin over vLLM's model runners, below the adapters to the two generations.

    A `Step` lives from where an adapter composes it until the end of ``execute_model``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._composer = StepComposer()
        self._step: Step | None = None
        self._effects = contextlib.ExitStack()
        super().__init__(*args, **kwargs)

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """As vLLM's; layers with windows keep all states, as modules are shared by all layers."""
        specs: dict[str, Any] = super().get_kv_cache_spec()  # type: ignore[misc]
        block_size = self.vllm_config.cache_config.block_size  # type: ignore[attr-defined]
        return compat.as_full_attention(specs, block_size)

    def initialize_kv_cache(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; then find the layers whose cache updates are captured and injected."""
        super().initialize_kv_cache(kv_cache_config, *args, **kwargs)  # type: ignore[misc]
        context = self.compilation_config.static_forward_context  # type: ignore[attr-defined]
        names = [n for g in kv_cache_config.kv_cache_groups for n in g.layer_names]
        model_config = self.vllm_config.model_config  # type: ignore[attr-defined]
        layers = [context[name] for name in names]
        compat.check_layers(layers, models.window_of(model_config), model_config.max_model_len)
        drafting = compat.drafter_layers(self)
        own = [context[n] for n in names if n not in drafting and not compat.shares_cache(context[n])]
        rotation = open_rotation(self.model, own, self.max_model_len)  # type: ignore[attr-defined]
        self.not_movable = rotation if isinstance(rotation, str) else None
        self._cache_writer = CacheWriter(
            own,
            self.device,  # type: ignore[attr-defined]
            open_keeper(self.vllm_config, own),  # type: ignore[attr-defined]
            None if isinstance(rotation, str) else rotation,
        )

    @property
    def records(self) -> RecordKeeper:
        """The records kept here."""
        return self._cache_writer.records

    @property
    def row_store(self) -> Any:
        """The edge rows kept here."""
        return self._cache_writer.row_store

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """Run a step; whatever it needed of Python is taken back at its end."""
        try:
            return super().execute_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._effects.close()
            self._step = None
            self.records.step_done()

    def _take_message(self, scheduler_output: Any) -> StepMessage | None:
        """What the scheduler says beside vLLM's own output. After requests were removed, before added."""
        self._composer.finish(scheduler_output.finished_req_ids)
        message: StepMessage | None = compat.message_of(scheduler_output)
        if message is not None:
            self._cache_writer.take(message)
            self._composer.admit(message.admissions)
        return message

    def _needs_python(self) -> bool:
        return self._step is not None and self._step.needs_python

    def _begin_effects(self, step: Step, table: Any, block_size: int, slot_mapping: Any) -> None:
        """Move slots in place, write edge rows, and begin to capture."""
        writer = self._cache_writer
        if len(step.moved):
            slots = writer.slots_of(step.moved_slots, table, block_size)
            slot_mapping[writer.on_device(step.moved)] = slots
        self._effects.enter_context(writer.begin(step, table, block_size))

    def _rows_presented(self) -> contextlib.AbstractContextManager[None]:
        """Attention backends build their metadata for the step's rows meanwhile."""
        rows = None if self._step is None else self._step.rows
        if rows is None:
            return contextlib.nullcontext()
        groups = [g for per_cache_group in self.attn_groups for g in per_cache_group]  # type: ignore[attr-defined]
        device = self.device  # type: ignore[attr-defined]
        return compat.attention_metadata_seen_through(groups, lambda common: present(common, rows, device))
