"""Compare the engines of a generation: seconds of a request's network and memory of its process, side by side.

    python -m benchmarks.latency [--networks resnet18 yolov5n] [--threads 1] [--rounds 30]

Each network has random weights, which take as long as trained ones. It is quantized to 8 bits, once with activations in
float and once in 8 bits, and computed by torch, by ONNX Runtime in float and by ONNX Runtime on integers: our model and
the one that its own quantize_static writes for the network, with a scale for each channel and unsigned activations.
Each engine has a process of its own, as in service. The processes take turns, one image each, so that other work on the
machine slows all of them; the table has medians and ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.markdown import table

if TYPE_CHECKING:
    from edged.models.loading import LoadedNetwork

ENGINES = {"torch, float": ("float", "torch"), "ONNX Runtime, float": ("float", "onnxruntime")}
ENGINES |= {"ONNX Runtime, integers": ("integers", "onnxruntime")}
ENGINES |= {"ONNX Runtime, quantize_static": ("float", "static")}
STATIC = "static.onnx"  # in an artifact's folder
IMAGES = 32


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18"], help="architectures (resnet18)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine (1)")
    parser.add_argument("--rounds", type=int, default=30, help="images that each engine computes (30)")
    options = parser.parse_args()
    print(f"{_processor()}, {options.threads} thread(s) for each engine\n")
    for network in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            _quantize(network, Path(folder))
            print(f"{network}\n\n{_measured(Path(folder), options.threads, options.rounds)}\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vnni = "with" if {"avx512_vnni", "avx_vnni"} & set(flags) else "without"
    return f"{name}, {vnni} VNNI"


def _quantize(network: str, folder: Path) -> None:
    """Write an artifact for each kind of activations, in a child, whose memory must not count."""
    child = multiprocessing.get_context("spawn").Process(target=_write_artifacts, args=(network, folder))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{network} could not be quantized")


def _write_artifacts(network: str, folder: Path) -> None:
    import torch

    from edged import QuantSpec, quantize
    from edged.models.architecture import Architecture
    from edged.models.loading import LoadedNetwork, Source
    from edged.models.registry import build
    from edged.models.yolov5.standard import standard
    from edged.spec import Method

    torch.manual_seed(0)
    if network.startswith("yolov5"):
        architecture = Architecture.detector(standard(network.removeprefix("yolov5"), tuple(map(str, range(80)))))
    else:
        architecture = Architecture(network, 1000)
    model = build(architecture).eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    source = Source("0" * 64, sum(4 * value.numel() for value in model.state_dict().values()), network, "none")
    loaded = LoadedNetwork(model, architecture, architecture.default_input, source)
    images = folder / "images"
    images.mkdir()
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(images / f"{index}.png")
    for name, bits in (("float", None), ("integers", 8)):
        quantize(loaded, images, folder / name, QuantSpec(method=Method.RTN, bits=8, activation_bits=bits))
    _write_static(loaded, images, folder / "float" / STATIC)


def _write_static(loaded: LoadedNetwork, images: Path, path: Path) -> None:
    """Write the model that ONNX Runtime's quantize_static makes of a network, by its advice for CPUs."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from edged.execution.onnx_model import onnx_model

    spec = loaded.input
    model = onnx_model(loaded.model, {}, None, loaded.architecture, spec, batch=1)
    plain, prepared = path.with_suffix(".plain"), path.with_suffix(".prepared")
    plain.write_bytes(model.SerializeToString())
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # shapes are fixed
    random = np.random.default_rng(0)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        left = 4

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            self.left -= 1
            shape = (1, spec.channels, spec.size, spec.size)
            return {"input": random.random(shape, np.float32)} if self.left >= 0 else None

    kind = quantization.QuantType.QUInt8  # of activations; with the default, QInt8, few convolutions are fused
    quantization.quantize_static(prepared, path, Reader(), per_channel=True, activation_type=kind)


def _measured(folder: Path, threads: int, rounds: int) -> str:
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    children = []
    for label, (artifact, runtime) in ENGINES.items():
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, folder / artifact, runtime, threads), daemon=True)
        child.start()
        connections[label], children = ours, [*children, child]
    memory = {label: connection.recv() for label, connection in connections.items()}
    seconds: dict[str, list[float]] = {label: [] for label in connections}
    for _ in range(rounds):
        for label, connection in connections.items():
            connection.send(True)
            seconds[label].append(connection.recv())
    for connection in connections.values():
        connection.send(False)
    return _rows({label: statistics.median(each) for label, each in seconds.items()}, memory)


def _rows(medians: dict[str, float], memory: dict[str, int]) -> str:
    base = next(iter(medians))
    rows: Sequence[Sequence[object]] = [
        [
            label,
            f"{1e3 * seconds:.1f}",
            f"{medians[base] / seconds:.1f}",
            memory[label] >> 20,
            f"{memory[label] / memory[base]:.2f}",
        ]
        for label, seconds in medians.items()
    ]
    return table(["engine", "ms an image", "times as fast", "RSS, MiB", "share of torch's"], rows)


def _serve(connection: Connection, artifact: Path, runtime: str, threads: int) -> None:
    """Load as a generation does, send the resident memory, then compute an image each time that it is asked."""
    import time

    from edged.artifacts.engines import open_executor
    from edged.artifacts.reader import read_artifact
    from edged.execution.executors import OnnxExecutor
    from edged.heap import trim_heap
    from service.inference.model import ServedModel

    opened = read_artifact(artifact)
    static = runtime == "static"
    executor = OnnxExecutor(artifact / STATIC, threads) if static else open_executor(opened, runtime, threads)
    served = ServedModel(opened, executor, "m", "1")
    if not static:
        served.warm(opened.load_warmup())
    trim_heap()
    spec = opened.input
    image = np.random.default_rng(0).standard_normal((1, spec.channels, spec.size, spec.size), np.float32)
    served.forward(image)
    connection.send(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    while connection.recv():
        start = time.perf_counter()
        served.forward(image)
        connection.send(time.perf_counter() - start)


if __name__ == "__main__":
    main()
