"""`python -m service.doctor.torch_probe`: import torch, torchvision and onnxruntime; print what came of it as JSON.

A process of its own, because a broken build may end it without a word.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from typing import Any


def probe() -> dict[str, Any]:
    """What the packages say of themselves."""
    import torch

    from edged.models.torchvision_shim import compiled_operators_load, import_torchvision

    return {
        "torch": torch.__version__,
        "cuda": torch.cuda.is_available(),
        "built_for_cuda": torch.version.cuda,
        "torchvision": import_torchvision().__version__,
        "operators": compiled_operators_load(),
        "onnxruntime": _onnxruntime(),
    }


def _onnxruntime() -> dict[str, Any] | None:
    """Its version and what it can compute on; None if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    try:
        runtime = importlib.import_module("onnxruntime")
        return {"version": runtime.__version__, "providers": list(runtime.get_available_providers())}
    except Exception as error:  # whatever a broken build raises
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
