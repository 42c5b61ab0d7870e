"""The engine that computes an artifact. torch is imported only where it is the engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX
from edged.artifacts.reader import Artifact
from edged.errors import ArtifactError, DeviceError, UnavailableError
from edged.execution.engine_cache import EngineCache
from edged.execution.executors import Executor, OnnxExecutor, TorchExecutor, use_torch_threads
from edged.execution.openvino_executor import OpenVinoExecutor

if TYPE_CHECKING:
    import torch

# Engines, named as the packages that they are imported from, and how each is installed.
ENGINES = {
    "onnxruntime": "`pip install onnxruntime`",
    "openvino": "`pip install 'edged[openvino]'`",
    "torch": "the torch of your device",
}


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


def engine_of(artifact: Artifact, runtime: str) -> str:
    """Return the engine that computes an artifact, such as "onnxruntime".

    Args:
        artifact: The artifact.
        runtime: One of `edged.spec.RUNTIMES`; "auto" takes the engine that the artifact was judged with. Where that is
            not installed or not known, it takes ONNX Runtime, and torch where the artifact has no ONNX model.
    """
    if runtime != "auto":
        return runtime
    if artifact.manifest.onnx is None:
        return "torch"
    judged, installed = (artifact.manifest.serve or {}).get("engine"), installed_engines()
    return next((engine for engine in (judged, "onnxruntime") if engine in installed), "torch")


def open_executor(
    artifact: Artifact, engine: str, threads: int, device: str = "cpu", cache: Path | None = None
) -> Executor:
    """Load the network of an artifact into an engine.

    Threads that the engine computes with are started here, with the priority of the calling thread.

    Args:
        artifact: The artifact.
        engine: One of `edged.spec.RUNTIMES` but "auto".
        threads: Threads to compute with.
        device: Device that torch computes on: "cpu", "cuda", or "auto" for a GPU if torch finds one and computes in
            float. The other engines take no device.
        cache: Folder for the compiled model, where that saves time; None for no cache.

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
    return open_onnx(_checked_model(artifact, engine), engine, threads, _cache_of(artifact, cache))


def open_onnx(model: bytes | Path, engine: str, threads: int, cache: EngineCache | None = None) -> Executor:
    """Load an ONNX model into an engine.

    Args:
        model: The model, or the path of its file.
        engine: The engine, one that reads ONNX models.
        threads: Threads to compute with.
        cache: Where the compiled model is kept, if the engine compiles it; None for no cache.

    Raises:
        ArtifactError: The model cannot be loaded.
    """
    return OpenVinoExecutor(model, threads, cache) if engine == "openvino" else OnnxExecutor(model, threads)


def _cache_of(artifact: Artifact, folder: Path | None) -> EngineCache | None:
    """Return the cache of an artifact's compiled models.

    There is none for a model in float: it would be as large as the network, and save a tenth of a second.
    """
    if folder is None or artifact.manifest.onnx is None or artifact.activations is None:
        return None
    return EngineCache(folder, artifact.manifest.onnx["sha256"])


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
        raise ArtifactError(f"cannot read {path}: {error.strerror}; quantize the checkpoint again") from error
    if found != artifact.manifest.onnx["sha256"]:
        raise ArtifactError(
            f"{path} has sha256 {found[:16]}..., its manifest says {str(artifact.manifest.onnx['sha256'])[:16]}...;"
            " quantize the checkpoint again"
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
