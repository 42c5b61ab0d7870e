"""Providers of ONNX Runtime, which are where it computes. Imports nothing of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Names in the config, and ONNX Runtime's own.
NAMES: Mapping[str, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
CPU = "cpu"


@dataclass(frozen=True)
class Providers:
    """Where an ONNX model is to be computed.

    Attributes:
        wanted: Names in the order of preference, each one of `edged.spec.PROVIDERS`.
        integers: Whether the model computes on integers. Only the CPU takes it then: the CUDA provider has no integer
            kernels (microsoft/onnxruntime#24807), and TensorRT takes signed codes without zero points only.
        engines: Folder where TensorRT keeps the engines that it builds; None to build them each time.
    """

    wanted: Sequence[str] = (CPU,)
    integers: bool = False
    engines: Path | None = None

    @property
    def on_gpu(self) -> tuple[str, ...]:
        """The wanted ones that compute this model on a GPU."""
        return () if self.integers else tuple(name for name in self.wanted if name != CPU)

    def of_session(self, available: Collection[str]) -> list[tuple[str, dict[str, str]]]:
        """Return ONNX Runtime's names and options of the providers to use, the CPU last.

        Args:
            available: ONNX Runtime's names of those that it was built with.
        """
        usable = [name for name in self.on_gpu if NAMES[name] in available]
        return [(NAMES[name], self._options(name)) for name in (*usable, CPU)]

    def missing(self, used: Collection[str]) -> list[str]:
        """Return the wanted ones that a session does not use, although the model suits them.

        Args:
            used: ONNX Runtime's names of those that it uses.
        """
        return [name for name in self.on_gpu if NAMES[name] not in used]

    def _options(self, name: str) -> dict[str, str]:
        if name != "tensorrt" or self.engines is None:
            return {}
        folder = str(self.engines)
        caches = {"trt_engine_cache_path": folder, "trt_timing_cache_path": folder}
        return {"trt_engine_cache_enable": "True", "trt_timing_cache_enable": "True", **caches}


def name_of(provider: str) -> str:
    """Return the name in the config of a provider of ONNX Runtime; its own name if it has none there."""
    return next((name for name, full in NAMES.items() if full == provider), provider)
