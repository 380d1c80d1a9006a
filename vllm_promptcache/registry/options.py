"""The options of one request: its ``prompt_cache`` object."""

from __future__ import annotations

from dataclasses import dataclass, fields

from vllm_promptcache.errors import unknown
from vllm_promptcache.registry.errors import RefusedError


@dataclass(frozen=True)
class PromptOptions:
    """Options of one request.

    Attributes:
        reuse: false computes the same token IDs at the same positions with plain full attention.
    """

    reuse: bool = True

    @classmethod
    def from_request(cls, value: object) -> PromptOptions:
        """Read a request's ``prompt_cache`` field; None stands for the defaults.

        Raises:
            RefusedError: it is no object, or an option is unknown or has a wrong value.
        """
        if value is None:
            return cls()
        if not isinstance(value, dict):
            raise _bad("prompt_cache: must be an object of options")
        known = [field.name for field in fields(cls)]
        problems = [unknown("option", str(name), known) for name in value if name not in known]
        if problems:
            raise _bad(f"prompt_cache: {' '.join(problems)} (known options: {', '.join(known)})")
        if not isinstance(value.get("reuse", True), bool):
            raise _bad("prompt_cache: 'reuse' must be true or false")
        return cls(**value)


def _bad(message: str) -> RefusedError:
    return RefusedError(message, kind="PMLError", field="prompt_cache")
