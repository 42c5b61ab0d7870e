"""`python -m service.doctor.torch_probe`: import torch, torchvision and onnxruntime, and print the result as JSON.

The probe is a process of its own, because a broken build may crash it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from typing import Any


def probe() -> dict[str, Any]:
    """Return the versions and capabilities of the packages."""
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
    """Return onnxruntime's version and providers, or its import error; None if it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    try:
        runtime = importlib.import_module("onnxruntime")
        return {"version": runtime.__version__, "providers": list(runtime.get_available_providers())}
    except Exception as error:  # whatever a broken build raises
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe()) + "\n")
