"""Post-training quantization of ResNet and YOLOv5 checkpoints: tensors and files in, tensors and files out.

    from edged import QuantSpec, load_artifact, quantize

    result = quantize("resnet18.pt", "calibration-images", "resnet18-w4", QuantSpec(bits=4))
    model = load_artifact(result.artifact).load_model()

The names of this module are loaded on first use: `import edged` imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edged.version import __version__

if TYPE_CHECKING:
    from edged.artifacts.reader import read_artifact as load_artifact
    from edged.errors import EdgedError
    from edged.models.loading import load_checkpoint
    from edged.pipeline.quantize import quantize
    from edged.spec import QuantSpec

__all__ = ["EdgedError", "QuantSpec", "__version__", "load_artifact", "load_checkpoint", "quantize"]

# Public name -> the module that defines it, and its name there.
_LAZY = {
    "EdgedError": ("edged.errors", "EdgedError"),
    "QuantSpec": ("edged.spec", "QuantSpec"),
    "load_artifact": ("edged.artifacts.reader", "read_artifact"),
    "load_checkpoint": ("edged.models.loading", "load_checkpoint"),
    "quantize": ("edged.pipeline.quantize", "quantize"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # later uses do not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
