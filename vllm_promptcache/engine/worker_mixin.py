"""What the scheduler's process asks of workers besides steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_promptcache import compat
from vllm_promptcache.records.record_file import RecordHeader


class PromptCacheWorkerMixin:
    """Mixin over vLLM's workers."""

    model_runner: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """As vLLM's, which finds the plugin's model classes too."""
        compat.register_mpt()
        super().load_model(*args, **kwargs)  # type: ignore[misc]

    def fetch_records(self, headers: Sequence[RecordHeader]) -> list[bool]:
        """Bring records from disk into memory: for each whether it is there now."""
        found: list[bool] = self.model_runner.records.fetch(headers)
        return found

    def shutdown(self) -> None:
        """As vLLM's; records that wait to be written are."""
        records = getattr(getattr(self, "model_runner", None), "records", None)
        if records is not None:
            records.close()
        super().shutdown()  # type: ignore[misc]

    def why_not_movable(self) -> str | None:
        """Why the model's states cannot be moved to other positions; None where they can."""
        reason: str | None = self.model_runner.not_movable
        return reason
