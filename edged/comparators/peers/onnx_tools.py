"""Quantize an ONNX model with the tools of ONNX Runtime and of Intel (NNCF), for comparison."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # importing this module must cost no memory in the processes that benchmarks.latency measures
    from torch import Tensor

    from edged.calibration.dataset import ImageCache

Floats = npt.NDArray[np.float32]

CALIBRATORS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
STATIC = tuple(f"quantize_static, {name}" for name in CALIBRATORS)
PEERS = (*STATIC, "NNCF")


def is_installed(peer: str) -> bool:
    """Return whether a peer can be measured here."""
    return peer in STATIC or importlib.util.find_spec("nncf") is not None


def quantize_with_peer(
    peer: str, source: Path, target: Path, cache: ImageCache, images: Tensor, batch: int, *, reduce_range: bool
) -> None:
    """Quantize weights and activations to 8 bits; layers that edged computes in float stay in float.

    Args:
        peer: One of PEERS.
        source: The network in float, an ONNX model.
        target: File to write.
        cache: Calibration images.
        images: Their indices, int64 [n].
        batch: Images per calibration step.
        reduce_range: Whether weights get 7 bits, for CPUs on which 8 saturate.
    """
    images = images[: len(images) // batch * batch]  # histograms of quantize_static take batches of one size only
    batches = (part.numpy() for part in cache.batches(images, batch))
    kept = _head(source)
    if peer == "NNCF":
        _nncf(source, target, batches, len(images), kept)
    else:
        _quantize_static(peer.partition(", ")[2], source, target, batches, kept, reduce_range)


def _head(source: Path) -> list[str]:
    """Return the names of the convolutions whose outputs are joined to a detector's predictions, if it is one."""
    import onnx

    graph = onnx.load(source).graph
    if graph.output[0].name != "raw":
        return []
    producers = {output: node for node in graph.node for output in node.output}
    found, waiting = [], [graph.output[0].name]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting += node.input
    return found


def _quantize_static(
    calibrator: str, source: Path, target: Path, batches: Iterator[Floats], kept: Sequence[str], reduce_range: bool
) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    with _errors_only():
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
    name = onnx.load(source).graph.input[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def get_next(self) -> dict[str, Floats] | None:
            images = next(batches, None)
            return None if images is None else {name: images}

    with _errors_only():
        quantization.quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[CALIBRATORS[calibrator]],
            nodes_to_exclude=list(kept),
        )
    prepared.unlink()


@contextmanager
def _errors_only() -> Iterator[None]:
    """Keep the advice of ONNX Runtime's tools, which use the root logger, out of the log during the block."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _nncf(source: Path, target: Path, batches: Iterator[Floats], count: int, kept: Sequence[str]) -> None:
    import nncf
    import onnx

    nncf.set_log_level(logging.ERROR)
    model = onnx.load(source)
    name = model.graph.input[0].name

    def as_inputs(images: Floats) -> dict[str, Any]:
        return {name: images}

    done = nncf.quantize(
        model,
        nncf.Dataset(list(batches), as_inputs),
        subset_size=count,
        ignored_scope=nncf.IgnoredScope(names=list(kept)) if kept else None,
    )
    onnx.save(done, target)
