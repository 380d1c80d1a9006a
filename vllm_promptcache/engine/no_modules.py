"""An engine without modules: its model's states cannot be composed; nothing is encoded, pinned or reused."""

from __future__ import annotations

from typing import Any

from vllm_promptcache.blocks.wire import keys_from_wire
from vllm_promptcache.contract.repair import RECURRENT
from vllm_promptcache.engine.accounting import stats
from vllm_promptcache.engine.module_store import ModuleStore
from vllm_promptcache.engine.stored_unit import Residency


class NoModules:
    """The front end's calls, as `ModuleControl` takes them."""

    def __init__(self, store: ModuleStore) -> None:
        """``store`` is one in which nothing can be pinned."""
        self._store = store

    def call(self, operation: str, payload: dict[str, Any]) -> dict[str, Any]:
        """One call of the front end. Nothing is pinned or warmed; what is defined is not needed."""
        if operation == "status":
            absent = {"residency": Residency.ABSENT.value, "pinned": False, "blocks": 0, "users": 0}
            absent["record"] = None
            return {"units": [absent for _ in keys_from_wire(payload["units"])]}
        refused = {"pinned": False, "refused": RECURRENT} if operation in ("pin", "warm") else {}
        return {**refused, **self._stats()}

    def _stats(self) -> dict[str, Any]:
        return {**stats(self._store), "keeps_modules": False}

    def report(self, num_tokens: int, num_found: int) -> dict[str, int]:
        """Count a request; what is reported of it: so many of its tokens were found in the prefix cache."""
        report = {
            "modules_resident": 0,
            "modules_encoded": 0,
            "modules_loaded": 0,
            "tokens_reused": 0,
            "tokens_encoded": 0,
            "tokens_found": num_found,
            "tokens_new": num_tokens - num_found,
            "tokens_repaired": 0,
            "recurrent": 1,
        }
        self._store.resident.tally.count_request(None, report)
        return report
