"""The engine that computes an artifact. torch is imported only where it is the engine."""

from __future__ import annotations

import importlib.util

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX
from edged.artifacts.reader import Artifact
from edged.errors import ArtifactError
from edged.execution.executors import Executor, OnnxExecutor, TorchExecutor
from edged.spec import RUNTIMES


def open_executor(artifact: Artifact, runtime: str, threads: int) -> Executor:
    """Load the network of an artifact into an engine.

    Args:
        artifact: The artifact.
        runtime: One of RUNTIMES; "auto" takes ONNX Runtime if it is installed and the artifact has an ONNX model, and
            torch otherwise.
        threads: Threads to compute with.

    Raises:
        ArtifactError: The model is damaged, or the artifact has none for this engine.
    """
    assert runtime in RUNTIMES  # noqa: S101  # checked with the config
    has_onnx = artifact.manifest.onnx is not None
    if runtime == "torch" or (runtime == "auto" and not (has_onnx and _onnxruntime_is_installed())):
        import torch

        torch.set_num_threads(threads)
        torch.get_num_threads()  # torch reads the number when a thread first asks for it
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
