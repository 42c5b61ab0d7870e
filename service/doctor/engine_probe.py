"""`python -m service.doctor.engine_probe ENGINE`: import an engine and print its version and devices as JSON.

The probe is a process of its own, because a broken build may crash it.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from edged.execution.cuda_memory import gpu_name
from edged.execution.onnx_providers import NAMES
from edged.execution.openvino_executor import import_openvino


def probe(engine: str) -> dict[str, Any]:
    """Return an engine's version and what it computes on: ONNX Runtime's providers, OpenVINO's devices, or the GPU."""
    if engine == "openvino":
        openvino = import_openvino()
        return {"version": openvino.__version__.split("-")[0], "computes_on": list(openvino.Core().available_devices)}
    runtime = importlib.import_module(engine)
    if engine == "tensorrt":
        return {"version": runtime.__version__, "computes_on": [gpu_name()]}
    return {
        "version": runtime.__version__,
        "computes_on": [name for name in runtime.get_available_providers() if name in NAMES.values()],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(sys.argv[1])) + "\n")
