"""Engines that compute a network. Imports neither torch nor ONNX Runtime until one of them is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edged.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn

Floats = npt.NDArray[np.float32]


class Executor(Protocol):
    """Computes a network.

    Attributes:
        name: Name of the engine.
        threads: Threads that it computes with.
    """

    name: str
    threads: int

    def run(self, images: Floats) -> Floats:
        """Compute the outputs [b, ...] of images [b, channels, height, width]. The images are not modified."""


def use_torch_threads(threads: int) -> None:
    """Set the number of threads that torch computes with when this thread asks it to.

    torch reads the number when a thread first asks for it, and another thread may have changed it by then.
    """
    import torch

    torch.set_num_threads(threads)
    torch.get_num_threads()


class TorchExecutor:
    """Computes a network with torch on the CPU, in channels-last layout.

    Args:
        network: The network in eval mode. Its memory layout is changed.
    """

    name = "torch"

    def __init__(self, network: nn.Module) -> None:
        import torch

        self._torch = torch
        self._network: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.threads = torch.get_num_threads()

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images."""
        torch = self._torch
        with torch.inference_mode():
            laid_out = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            outputs: Floats = self._network(laid_out).float().numpy()
        return outputs


class OnnxExecutor:
    """Computes an ONNX model with ONNX Runtime on the CPU.

    Args:
        model: The model, or the path of its file.
        threads: Threads to compute with.

    Raises:
        ArtifactError: The model cannot be loaded.
    """

    name = "onnxruntime"

    def __init__(self, model: bytes | Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS
        options.enable_cpu_mem_arena = False  # it keeps 10 to 25 MB for reuse, and gains no time
        # Threads that wait actively would take the cores that a quantization or another generation needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = model if isinstance(model, bytes) else str(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own, which share no base
            where = "the model" if isinstance(model, bytes) else str(model)
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"ONNX Runtime cannot load {where}: {reason}; quantize the checkpoint again") from error
        self._input = self._session.get_inputs()[0].name
        self.threads = threads

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images."""
        outputs: Floats = self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]
        return outputs


_ERRORS = 3  # ONNX Runtime's least severity that is logged
