"""The engine that computes an artifact. torch is imported only where it is the engine."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX
from edged.artifacts.reader import Artifact
from edged.errors import ArtifactError, DeviceError, EngineError, MemoryLimitError, StateError, UnavailableError
from edged.execution.engine_cache import EngineCache, this_gpu
from edged.execution.executors import Executor, OnnxExecutor, TorchExecutor, use_torch_threads
from edged.execution.onnx_providers import Providers
from edged.execution.openvino_executor import OpenVinoExecutor, import_openvino
from edged.execution.processor import processor_saturates
from edged.execution.saturation import engine_saturates, settings_may_saturate
from edged.execution.tensorrt_engine import BuildLimits
from edged.execution.tensorrt_executor import open_engine
from edged.spec import FLOAT

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

REBUILD_S = 120.0  # less than the time that a generation has to start

# Engines, named as the packages that they are imported from, and how each is installed.
ENGINES = {
    "onnxruntime": "`pip install onnxruntime`",
    "openvino": "`pip install openvino`",
    "torch": "the torch of your device",
    "tensorrt": "python3-libnvinfer on a Jetson, else `pip install tensorrt`",
}


class DamagedModelError(ArtifactError):
    """An artifact's ONNX model is missing, or is not what its manifest says. The codes may still be there.

    Args:
        damage: What is wrong.
        remedy: What to do.

    Attributes:
        damage: What is wrong.
    """

    def __init__(self, damage: str, remedy: str = "quantize the checkpoint again") -> None:
        super().__init__(f"{damage}; {remedy}")
        self.damage = damage


def installed_engines() -> tuple[str, ...]:
    """Return the engines that are installed here, the one that takes the least memory first."""
    return tuple(name for name in ENGINES if importlib.util.find_spec(name) is not None)


def require_engine(engine: str) -> None:
    """Check that an engine is installed.

    Raises:
        UnavailableError: It is not.
    """
    if engine not in installed_engines():
        raise UnavailableError(
            f"runtime is {engine}, which is not installed here; install {ENGINES[engine]}, or set runtime: auto"
        )


def import_engine(engine: str) -> None:
    """Import an engine ahead of the model that it loads: ONNX Runtime takes longer for that than for a small model."""
    if engine == "onnxruntime":
        importlib.import_module(engine)
    elif engine == "openvino":
        import_openvino()


def engine_of(artifact: Artifact, runtime: str) -> str:
    """Return the engine that computes an artifact, such as "onnxruntime".

    Args:
        artifact: The artifact.
        runtime: One of `edged.spec.RUNTIMES`; "auto" takes the engine that the artifact was judged with. Where that is
            not installed or not known, it takes ONNX Runtime, and torch where the artifact has no ONNX model. So does
            "tensorrt" where the artifact was judged with another engine, because its model is not written for TensorRT.
    """
    if runtime not in ("auto", "tensorrt"):
        return runtime
    if artifact.manifest.onnx is None:
        return "torch"
    judged, installed = (artifact.manifest.serve or {}).get("engine"), installed_engines()
    return next((engine for engine in (judged, "onnxruntime") if engine in installed), "torch")


def open_executor(
    artifact: Artifact,
    engine: str,
    threads: int,
    device: str = "cpu",
    cache: Path | None = None,
    providers: Sequence[str] = ("cpu",),
    *,
    max_batch: int = 1,
) -> Executor:
    """Load the network of an artifact into an engine.

    Threads that the engine computes with are started here, with the priority of the calling thread.

    Args:
        artifact: The artifact.
        engine: One of `edged.spec.RUNTIMES` but "auto".
        threads: Threads to compute with.
        device: Device that torch computes on: "cpu", "cuda", or "auto" for a GPU if torch finds one and computes in
            float. The other engines take no device.
        cache: Folder for the compiled model, where that saves time; None for no cache. TensorRT needs it.
        providers: Where ONNX Runtime computes, names of `edged.spec.PROVIDERS` in the order of preference.
        max_batch: Largest number of images that are computed together.

    Raises:
        UnavailableError: The engine is not installed.
        ArtifactError: The model is damaged, or the artifact has none for this engine.
        DeviceError: torch cannot use the device, or the activations are codes, which it computes with on the CPU only.
        MemoryLimitError: The network does not fit into the GPU's memory.
    """
    require_engine(engine)
    if engine == "torch":
        use_torch_threads(threads)
        return TorchExecutor(artifact.load_model(), _torch_device(artifact, device))
    model, integers = _checked_model(artifact, engine), artifact.activations is not None
    if engine == "tensorrt":
        limits = BuildLimits(deadline_s=REBUILD_S, max_batch=max_batch)
        return _open_tensorrt(model, threads, cache, limits, wide_codes=_may_saturate(artifact))
    kept = EngineCache(cache, artifact.manifest.onnx["sha256"]) if cache and artifact.manifest.onnx else None
    tensorrt = None if kept is None or "tensorrt" not in providers else _tensorrt_engines(kept)
    where = Providers(providers, integers, tensorrt)
    if not integers:  # a compiled model in float is as large as the network, and saves a tenth of a second
        kept = None
    return open_onnx(model, engine, threads, kept, wide_codes=_may_saturate(artifact), providers=where)


def open_onnx(
    model: bytes | Path,
    engine: str,
    threads: int,
    cache: EngineCache | None = None,
    *,
    wide_codes: bool = True,
    providers: Providers | None = None,
) -> Executor:
    """Load an ONNX model into an engine that computes it without saturation.

    Args:
        model: The model, or the path of its file.
        engine: The engine, one that reads ONNX models.
        threads: Threads to compute with.
        cache: Where the compiled model is kept, if the engine compiles it; None for no cache.
        wide_codes: Whether the model computes on integers with codes that saturate on some processors.
        providers: Where ONNX Runtime computes; None for the CPU.

    Raises:
        ArtifactError: The model cannot be loaded, or the engine saturates on this processor.
    """
    if engine != "openvino":
        return OnnxExecutor(model, threads, exact=wide_codes and needs_exact_kernels(), providers=providers)
    if wide_codes and openvino_saturates():
        raise ArtifactError(f"OpenVINO clips sums of 8-bit products on this processor, which has no VNNI; {_REMEDY}")
    return OpenVinoExecutor(model, threads, cache)


_REMEDY = "quantize with 7 bits, or set runtime: onnxruntime"


@functools.cache
def needs_exact_kernels() -> bool:
    """Return whether ONNX Runtime saturates on this processor unless it is asked for exact kernels.

    Raises:
        ArtifactError: It saturates in these, too.
    """
    if not processor_saturates() and not engine_saturates(lambda model: OnnxExecutor(model, 1)):
        return False
    if engine_saturates(lambda model: OnnxExecutor(model, 1, exact=True)):
        raise ArtifactError(
            "ONNX Runtime clips sums of 8-bit products on this processor, also in its exact kernels; quantize with 7"
            " bits, or set runtime: torch"
        )
    return True


@functools.cache
def openvino_saturates() -> bool:
    """Return whether OpenVINO, which has no exact kernels for integers, saturates on this processor."""
    return engine_saturates(lambda model: OpenVinoExecutor(model, 1))


def _may_saturate(artifact: Artifact) -> bool:
    manifest = artifact.manifest
    if manifest.activations is None or (manifest.serve or {}).get("precision") == FLOAT:
        return False
    return bool(manifest.weights.get("wide_codes", settings_may_saturate(manifest.quantization)))


def _tensorrt_engines(cache: EngineCache) -> Path:
    """Return the folder of the engines that the TensorRT provider builds; their names have the type of the GPU."""
    version = importlib.import_module("onnxruntime").__version__
    return cache.path("tensorrt", {"version": version, "driver": this_gpu()})


def _open_tensorrt(
    model: Path, threads: int, folder: Path | None, limits: BuildLimits, *, wide_codes: bool
) -> Executor:
    """Load an engine of TensorRT, which is built now if none fits; where there cannot be one, ONNX Runtime computes."""
    try:
        if folder is None:
            raise EngineError("there is no folder for TensorRT's engines")
        return open_engine(model.read_bytes(), folder, threads, limits)
    except (DeviceError, EngineError, MemoryLimitError, StateError) as error:
        log.warning("%s; ONNX Runtime computes %s for now, and the next start tries again", error, model)
        return open_onnx(model, "onnxruntime", threads, wide_codes=wide_codes)


def _checked_model(artifact: Artifact, engine: str) -> Path:
    """Return the path of an artifact's ONNX model, once its digest is known to be right."""
    if artifact.manifest.onnx is None:
        raise ArtifactError(
            f"{artifact.directory} has no {ONNX}, which runtime: {engine} computes; drop the checkpoint again,"
            " or set runtime: auto"
        )
    path = artifact.directory / ONNX
    try:
        found = sha256_file(path)
    except OSError as error:
        raise DamagedModelError(f"cannot read {path}: {error.strerror}") from error
    if found != artifact.manifest.onnx["sha256"]:
        raise DamagedModelError(
            f"{path} has sha256 {found[:16]}..., its manifest says {str(artifact.manifest.onnx['sha256'])[:16]}..."
        )
    return path


def _torch_device(artifact: Artifact, name: str) -> torch.device:
    from edged.device import CPU, choose_device

    device = choose_device(name)
    if device == CPU or artifact.activations is None:
        return device
    if name == "auto":
        return CPU
    raise DeviceError(
        f"serve.device is {name}, and {artifact.directory} has quantized activations, which torch computes on the CPU"
        " only; set quantization.activation_bits: null and drop the checkpoint again, or choose serve.device: auto"
    )
