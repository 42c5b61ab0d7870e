"""`python -m edged.execution.tensorrt_build FOLDER`: build a TensorRT engine in a process of its own, without torch.

Reads model.onnx and request.json of the folder (see `edged.execution.tensorrt_engine`), and writes engine.plan,
timing.cache and result.json there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from edged.errors import EdgedError
from edged.execution.cuda_memory import gpu_name
from edged.execution.engine_cache import TIMINGS

LEAST_VERSION = 10  # the first one whose networks always have an explicit batch size
STRONGLY_TYPED = 11  # from this version on types follow from the model, and there are no flags of precision

MODEL, REQUEST, PLAN, RESULT = "model.onnx", "request.json", "engine.plan", "result.json"
MEMORY, FAILED = "memory", "failed"  # why there is no engine

_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = ("out of memory", "outofmemory", "insufficient memory", "not enough memory", "memory allocation")


class NotBuiltError(Exception):
    """There is no engine.

    Args:
        kind: MEMORY or FAILED.
        reason: Why.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def main(arguments: list[str]) -> int:
    """Build the engine; the result says what became of it."""
    folder, parent = Path(arguments[0]), int(arguments[1])
    _die_with_parent(parent)
    try:
        result = run(folder)
    except NotBuiltError as error:
        result = {"failed": error.kind, "reason": str(error)}
    except MemoryError:
        result = {"failed": MEMORY, "reason": "the memory of the process is exhausted"}
    except EdgedError as error:
        result = {"failed": FAILED, "reason": str(error)}
    (folder / RESULT).write_text(json.dumps(result))
    return 0


def run(folder: Path) -> dict[str, Any]:
    """Build the engine of a folder.

    Returns:
        "tensorrt" (version), "gpu" (its name) and "integer" (whether it computes on integers).

    Raises:
        NotBuiltError: There is no engine.
    """
    request = json.loads((folder / REQUEST).read_text())
    trt = import_tensorrt()
    log = _logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse((folder / MODEL).read_bytes()):
        errors = [str(parser.get_error(number).desc()) for number in range(parser.num_errors)]
        raise NotBuiltError(FAILED, f"TensorRT cannot read the model: {_one_line('; '.join(errors))}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    kinds = {network.get_layer(number).type for number in range(network.num_layers)}
    if release_of(trt) < STRONGLY_TYPED:
        config.set_flag(trt.BuilderFlag.FP16)
        # Weights alone may be codes. Without any codes in the model, TensorRT would look for a calibrator.
        if kinds & {trt.LayerType.QUANTIZE, trt.LayerType.DEQUANTIZE}:
            config.set_flag(trt.BuilderFlag.INT8)
    _allow_batches(builder, network, config, request["max_batch"])
    timings = _load_timings(config, folder / TIMINGS)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = _one_line(" ".join(log.errors)) or "TensorRT gives no reason"
        kind = MEMORY if any(sign in reason.lower() for sign in _OUT_OF_MEMORY) else FAILED
        raise NotBuiltError(kind, f"TensorRT cannot build the engine: {reason}")
    (folder / PLAN).write_bytes(memoryview(plan))
    (folder / TIMINGS).write_bytes(memoryview(timings.serialize()))
    return {"tensorrt": str(trt.__version__), "gpu": gpu_name(), "integer": trt.LayerType.QUANTIZE in kinds}


def import_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        NotBuiltError: It is not installed, cannot be imported, or is too old.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        reason = f"TensorRT cannot be imported: {_one_line(str(error))}"
        raise NotBuiltError(FAILED, f"{reason}; install python3-libnvinfer on a Jetson, else tensorrt") from error
    if release_of(trt) < LEAST_VERSION:
        raise NotBuiltError(FAILED, f"TensorRT {trt.__version__} is too old; install {LEAST_VERSION} or newer")
    return trt


def release_of(trt: Any) -> int:
    """Return the major version of a TensorRT module."""
    return int(str(trt.__version__).split(".")[0])


def _allow_batches(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    """Let a model for any number of images take up to `max_batch`; one image is what it is optimized for."""
    images = network.get_input(0)
    batch, *shape = images.shape
    if batch == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(images.name, (1, *shape), (1, *shape), (max_batch, *shape))
        config.add_optimization_profile(profile)


def _load_timings(config: Any, path: Path) -> Any:
    """Use the timings of earlier builds; a file that does not fit is not used."""
    known = path.read_bytes() if path.is_file() else b""
    timings = config.create_timing_cache(known)
    if timings is None or not config.set_timing_cache(timings, ignore_mismatch=False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]  # a class of a module that may not be installed
        """Keeps the errors, which are all that says why a build failed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # TensorRT's base does not take super()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            """Receive a line of the log."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)
                sys.stderr.write(f"TensorRT: {_one_line(text)}\n")

    return Log()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _die_with_parent(parent: int) -> None:
    """Let the kernel end this process with its parent, and before all others when memory runs out."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
