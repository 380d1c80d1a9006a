"""A pytest plugin (``-p tests.interpreted_triton``): vLLM's V2 model runner on a machine without a GPU.

V2 needs Triton, which runs its kernels in an interpreter where it is told to. vLLM looks for a backend first
and finds none for CPUs: one without a compiler stands in for it here. Slow, and exact.
"""

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

import triton.backends


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


triton.backends.backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)
