"""The engine that computes an artifact. torch is imported only where it is the engine."""

from __future__ import annotations

import importlib.util

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX
from edged.artifacts.reader import Artifact
from edged.errors import ArtifactError
from edged.execution.executors import Executor, OnnxExecutor, TorchExecutor, use_torch_threads


def engine_of(artifact: Artifact, runtime: str) -> str:
    """Return the engine that computes an artifact: "onnxruntime" or "torch".

    Args:
        artifact: The artifact.
        runtime: One of `edged.spec.RUNTIMES`; "auto" takes ONNX Runtime if it is installed and the artifact has an ONNX
            model, and torch otherwise.
    """
    if runtime != "auto":
        return runtime
    return "onnxruntime" if artifact.manifest.onnx is not None and _onnxruntime_is_installed() else "torch"


def open_executor(artifact: Artifact, engine: str, threads: int) -> Executor:
    """Load the network of an artifact into an engine.

    Threads that ONNX Runtime computes with are started here, with the priority of the calling thread.

    Args:
        artifact: The artifact.
        engine: "onnxruntime" or "torch".
        threads: Threads to compute with.

    Raises:
        ArtifactError: The model is damaged, or the artifact has none for this engine.
    """
    if engine == "torch":
        use_torch_threads(threads)
        return TorchExecutor(artifact.load_model())
    if artifact.manifest.onnx is None:
        raise ArtifactError(
            f"{artifact.directory} has no {ONNX}, which runtime: onnxruntime computes; drop the checkpoint again,"
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
    return OnnxExecutor(path, threads)


def _onnxruntime_is_installed() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None
