"""The options of one request: its ``prompt_cache`` object."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_promptcache.contract.repair import FULL, Repair
from vllm_promptcache.errors import unknown
from vllm_promptcache.frontend.errors import RefusedError

_KNOWN = ("reuse", "repair")


@dataclass(frozen=True)
class PromptOptions:
    """Options of one request.

    Attributes:
        repair: what is computed anew; None stands for the server's default.
    """

    repair: Repair | None = None

    @classmethod
    def of(cls, *, reuse: object = True, repair: object = None) -> PromptOptions:
        """Options as users give them: ``repair`` as text, and ``reuse`` false for the repair ``full``.

        Raises:
            RefusedError: a value is wrong, or the two contradict each other.
        """
        if not isinstance(reuse, bool):
            raise _bad("prompt_cache: 'reuse' must be true or false")
        chosen = None
        if repair is not None:
            try:
                chosen = repair if isinstance(repair, Repair) else Repair.parse(repair)
            except ValueError as error:
                raise _bad(f"prompt_cache: {error}") from None
        if reuse:
            return cls(chosen)
        if chosen not in (None, FULL):
            raise _bad(f"prompt_cache: without 'reuse' all is computed, as with 'full', not '{chosen}'")
        return cls(FULL)

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
        problems = [unknown("option", str(name), _KNOWN) for name in value if name not in _KNOWN]
        if problems:
            raise _bad(f"prompt_cache: {' '.join(problems)} (known options: {', '.join(_KNOWN)})")
        return cls.of(**value)


def _bad(message: str) -> RefusedError:
    return RefusedError(message, kind="PMLError", field="prompt_cache")
