"""Engines that compute a network. Imports neither torch nor ONNX Runtime until one of them is needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from edged.errors import ArtifactError, MemoryLimitError
from edged.execution.onnx_providers import CPU, Providers, name_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Floats = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative: 200 times the effect of threads on a ResNet-50, and less than any error that matters
HALF_ENGINES = ("torch_cuda", "tensorrt")  # names of executors that compute floats in float16
HALF_TOLERANCE = 0.02  # relative: 20 times the effect of float16 on a CIFAR ResNet-20


class Executor(Protocol):
    """Computes a network.

    Attributes:
        name: Name of the engine.
        threads: Threads that it computes with.
        tolerance: Largest difference from the outputs of another engine with the same network that rounding explains,
            relative to their norm.
    """

    name: str
    threads: int
    tolerance: float

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
    """Computes a network with torch in channels-last layout: in float32 on the CPU, in float16 on a GPU.

    Statistics of BatchNorm layers stay in float32, because a variance may exceed the range of float16.

    Args:
        network: The network in eval mode. Its memory layout is changed, on a GPU also its place and data type.
        device: Device to compute on; None for the CPU.

    Raises:
        MemoryLimitError: The network does not fit into the memory of the GPU.
    """

    def __init__(self, network: nn.Module, device: torch.device | None = None) -> None:
        import torch

        self._torch = torch
        self._device = torch.device("cpu") if device is None else device
        on_cpu = self._device.type == "cpu"
        self._dtype = torch.float32 if on_cpu else torch.float16
        self.name = "torch" if on_cpu else f"torch_{self._device.type}"
        self.tolerance = TOLERANCE if on_cpu else HALF_TOLERANCE
        try:
            self._network = self._placed(network)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        self.threads = torch.get_num_threads()

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images.

        Raises:
            MemoryLimitError: The GPU's memory is exhausted. Memory that is kept for reuse was released.
        """
        torch = self._torch
        try:
            with torch.inference_mode():
                laid_out = torch.from_numpy(images).to(self._dtype).contiguous(memory_format=torch.channels_last)
                outputs: Floats = self._network(laid_out.to(self._device)).cpu().float().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise self._out_of_memory() from error
        return outputs

    def _placed(self, network: nn.Module) -> nn.Module:
        torch = self._torch
        # The data type is changed first, so that half as much is copied.
        if self._dtype is not torch.float32:
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                    continue
                for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if value.is_floating_point():
                        value.data = value.data.to(self._dtype)
        placed: nn.Module = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        return placed

    def _out_of_memory(self) -> MemoryLimitError:
        return MemoryLimitError(
            "the GPU ran out of memory for requests; free its memory, lower batching.max_batch, or set"
            " serve.device: cpu"
        )


class OnnxExecutor:
    """Computes an ONNX model with ONNX Runtime.

    Args:
        model: The model, or the path of its file.
        threads: Threads to compute with.
        exact: Whether to compute on integers with kernels that do not saturate, which take more time, also on a
            processor with VNNI.
        providers: Where to compute; None for the CPU. Providers that this ONNX Runtime does not have are left out.

    Raises:
        ArtifactError: The model cannot be loaded.
    """

    def __init__(
        self, model: bytes | Path, threads: int, *, exact: bool = False, providers: Providers | None = None
    ) -> None:
        import onnxruntime

        providers = providers or Providers()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS
        options.enable_cpu_mem_arena = False  # it keeps 10 to 25 MB for reuse, and gains no time
        # Threads that wait actively would take the cores that a quantization or another generation needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if exact:
            options.add_session_config_entry(EXACT, "1")
        source = model if isinstance(model, bytes) else str(model)
        try:
            usable = providers.of_session(onnxruntime.get_available_providers())
            self._session = onnxruntime.InferenceSession(source, options, providers=usable)
        except Exception as error:  # ONNX Runtime raises classes of its own, which share no base
            where = "the model" if isinstance(model, bytes) else str(model)
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"ONNX Runtime cannot load {where}: {reason}; quantize the checkpoint again") from error
        used = self._session.get_providers()
        if missing := providers.missing(used):
            log.warning("ONNX Runtime has no provider %s here; see `edged doctor`", " and ".join(missing))
        first = name_of(used[0])
        self.name = "onnxruntime" if first == CPU else f"onnxruntime_{first}"
        self.tolerance = TOLERANCE if first == CPU else HALF_TOLERANCE  # GPUs round factors of float32 to 10 bits
        self._input = self._session.get_inputs()[0].name
        self.threads, self.exact = threads, exact

    def run(self, images: Floats) -> Floats:
        """Compute the outputs of images."""
        outputs: Floats = self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]
        return outputs


EXACT = "session.x64quantprecision"  # weights become unsigned, whose products no kernel adds in 16 bits
_ERRORS = 3  # ONNX Runtime's least severity that is logged
