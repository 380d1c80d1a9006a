"""Prompt Cache (Gim et al. 2024) in vLLM's paged attention: reuse of attention states, module by module.

Importing this package imports neither vLLM nor PyTorch; `LLM` is looked up on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_promptcache.offline import LLM

__version__ = "0.1.0"

__all__ = ["LLM", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports `LLM` only when it is asked for: vLLM takes seconds to import. Also finds `pml`."""
    if name == "LLM":
        from vllm_promptcache.offline import LLM

        return LLM
    if name == "pml":
        return importlib.import_module("vllm_promptcache.pml")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "LLM"])
