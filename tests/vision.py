"""Models with a part for images, for text: importable where torchvision is not (tools/install.py says why).

vLLM's modules of them import functions that prepare images, which import torchvision. None is called for
text.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest import mock

NAMES = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)
PROCESSING = (
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    "transformers.models.qwen3_vl.video_processing_qwen3_vl",
    "transformers.models.glm4v.image_processing_glm4v",
    "transformers.models.glm4v.video_processing_glm4v",
)


def make_importable() -> None:
    """Import what prepares images, and have vLLM look at models' classes in this process."""
    if importlib.util.find_spec("torchvision") is None:
        from transformers.utils import is_torchvision_available

        assert not is_torchvision_available()  # and Transformers remembers that
        modules = {name: ModuleType(name) for name in NAMES}
        for name in NAMES[1:]:
            parent, _, last = name.rpartition(".")
            setattr(modules[parent], last, modules[name])
        with mock.patch.dict(sys.modules, modules):
            processing = {name: importlib.import_module(name) for name in PROCESSING}
        sys.modules.update(processing)
    inspect_models_here()


def inspect_models_here() -> None:
    """Have vLLM look at a model's class in this process: it starts one for each that it has not seen."""
    from vllm.model_executor.models import registry

    def inspect_model_cls(self: Any) -> Any:
        return registry._ModelInfo.from_model_cls(self.load_model_cls())

    registry._LazyRegisteredModel.inspect_model_cls = inspect_model_cls  # type: ignore[method-assign]
