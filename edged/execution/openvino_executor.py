"""OpenVINO as an engine. Imports neither torch nor ONNX Runtime, and OpenVINO only when a model is loaded."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edged.errors import ArtifactError
from edged.execution.engine_cache import EngineCache, load_engine, store_engine
from edged.execution.executors import TOLERANCE

Floats = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

_CONVERTER = "openvino.tools.ovc"


class OpenVinoExecutor:
    """Computes an ONNX model with OpenVINO on the CPU.

    The model is compiled for one image, and a batch is computed image by image: a YOLOv5 that is compiled for any
    number of images takes several times as long, and to compile for another number takes as long as to load the model.

    Args:
        model: The model, or the path of its file.
        threads: Threads to compute with.
        cache: Where the compiled model is kept; None to compile it each time.

    Raises:
        ArtifactError: The model cannot be loaded.
    """

    name = "openvino"
    tolerance = TOLERANCE

    def __init__(self, model: bytes | Path, threads: int, cache: EngineCache | None = None) -> None:
        openvino = import_openvino()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            # Elsewhere it is 16 bits, where the processor has instructions for them.
            "INFERENCE_PRECISION_HINT": "f32",
            # Threads that are bound to cores would share them with a quantization while other cores are free.
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = _compiled(openvino, model, options, cache)
            self._request = compiled.create_infer_request()
        except Exception as error:  # whatever its C++ code throws
            where = "the model" if isinstance(model, bytes) else str(model)
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"OpenVINO cannot load {where}: {reason}; quantize the checkpoint again") from error
        self.threads = threads

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images."""
        outputs = [self._run(np.ascontiguousarray(image[None])) for image in images]
        return np.concatenate(outputs)

    def _run(self, image: Floats) -> Floats:
        outputs: Floats = self._request.infer({0: image}, share_inputs=True)[0]
        return outputs


def _compiled(openvino: Any, model: bytes | Path, options: Mapping[str, Any], cache: EngineCache | None) -> Any:
    """Return the compiled model, from the cache if it is there."""
    core = openvino.Core()
    path = None if cache is None else cache.path("openvino", {"version": openvino.__version__, "options": options})
    if path is not None and (engine := load_engine(path)) is not None:
        try:
            return core.import_model(engine, "CPU", options)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            log.warning("OpenVINO cannot load %s: %s; the model is compiled again", path, reason)
    read = core.read_model(model, b"") if isinstance(model, bytes) else core.read_model(str(model))
    read.reshape([1, *(list(read.input().partial_shape)[1:])])
    compiled = core.compile_model(read, "CPU", options)
    if path is not None:
        exported = compiled.export_model()
        store_engine(path, exported.getvalue() if isinstance(exported, io.BytesIO) else exported)
    return compiled


def import_openvino() -> Any:
    """Import OpenVINO without its converter, which reports each import to a server of statistics."""
    if "openvino" in sys.modules or _CONVERTER in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # to import it now is an ImportError, which OpenVINO expects
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_CONVERTER]
