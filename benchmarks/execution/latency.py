"""Compare the engines of a generation: time of a request's network, memory of its process and size of its file.

    python -m benchmarks.latency [--networks resnet18 resnet50 yolov5n] [--batches 1 8] [--threads 1] [--rounds 30]

Each network has random weights, which take as long as trained ones. It is computed in float by torch, ONNX Runtime and
OpenVINO, and on integers with 8, 7 and 4 bits a weight; next to them stand the files of `quantize_static` of ONNX
Runtime and of NNCF, where these are installed (`pip install 'edged[bench]'`). Each engine has a process of its own, as
in service, and all have the same settings. The processes take turns, one request each, so that other work on the
machine slows all of them; the tables have medians and ratios. Memory is that of the process after three answers.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.markdown import Goal, goal, goals_section, table
from edged.comparators.peers.onnx_tools import CALIBRATORS, is_installed, quantize_with_peer
from edged.execution.processor import processor_saturates

if TYPE_CHECKING:
    from edged.execution.executors import Executor
    from edged.models.architecture import Architecture

IMAGES = 32
NETWORKS = ("resnet18", "resnet50", "yolov5n")
STATIC = f"quantize_static, {next(iter(CALIBRATORS))}"  # calibrators change numbers, not the graph
TORCH, FLOAT, INTEGER = "torch, float", "ONNX Runtime, float", "ONNX Runtime, w8a8"
PACKED = "ONNX Runtime, w4a8"
STATIC_ROW, NNCF_ROW = f"ONNX Runtime, {STATIC}", "ONNX Runtime, NNCF"


@dataclass(frozen=True)
class Row:
    """An engine with what it computes.

    Attributes:
        source: Artifact folder, or ONNX file of a peer, in the network's folder.
        engine: Engine that computes it.
    """

    source: str
    engine: str


ROWS: dict[str, Row] = {
    TORCH: Row("float", "torch"),
    FLOAT: Row("float", "onnxruntime"),
    INTEGER: Row("w8a8", "onnxruntime"),
    "ONNX Runtime, w7a8": Row("w7a8", "onnxruntime"),
    PACKED: Row("w4a8", "onnxruntime"),
    STATIC_ROW: Row(f"{STATIC}.onnx", "onnxruntime"),
    NNCF_ROW: Row("NNCF.onnx", "onnxruntime"),
    "OpenVINO, float": Row("float", "openvino"),
    "OpenVINO, w8a8": Row("w8a8", "openvino"),
    "OpenVINO, w4a8": Row("w4a8", "openvino"),
    "OpenVINO, NNCF": Row("NNCF.onnx", "openvino"),
}
SPECS: dict[str, tuple[int, int | None]] = {"float": (8, None), "w8a8": (8, 8), "w7a8": (7, 8), "w4a8": (4, 8)}


@dataclass(frozen=True)
class Measured:
    """What a row took.

    Attributes:
        ms: Median milliseconds of a request.
        memory: Resident memory of the process in bytes.
        file: Bytes of the file that the engine reads.
    """

    ms: float
    memory: int
    file: int


def main() -> None:
    """Print a table for each network and batch, and the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18"], help="architectures (resnet18)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="images a request (1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine (1)")
    parser.add_argument("--rounds", type=int, default=30, help="requests that each engine computes (30)")
    options = parser.parse_args()
    print(f"{processor()}, {options.threads} thread(s) for each engine\n")
    goals: list[Goal] = []
    for network in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows = _prepare(network, Path(folder))
            for batch in options.batches:
                measured = _measure(rows, Path(folder), options.threads, options.rounds, batch)
                print(f"{network}, {batch} image{'s' * (batch > 1)} a request\n\n{_table(measured)}\n", flush=True)
                goals += _goals(network, measured) if batch == 1 else []
    print(goals_section(goals))


def processor() -> str:
    """Return the name of this CPU, and whether it has VNNI."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {'without' if processor_saturates() else 'with'} VNNI"


def _prepare(network: str, folder: Path) -> dict[str, Row]:
    """Write what the rows compute, in a child, whose memory must not count; return the rows that run here."""
    from edged.artifacts.engines import installed_engines

    peers = [peer for peer in (STATIC, "NNCF") if is_installed(peer)]
    child = multiprocessing.get_context("spawn").Process(target=_write, args=(network, folder, peers))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{network} could not be quantized")
    engines = installed_engines()
    return {label: row for label, row in ROWS.items() if row.engine in engines and (folder / row.source).exists()}


def _write(network: str, folder: Path, peers: list[str]) -> None:
    import torch

    from edged import QuantSpec, quantize
    from edged.calibration.dataset import build_cache
    from edged.execution.onnx_model import onnx_model
    from edged.models.loading import LoadedNetwork, Source
    from edged.models.registry import build
    from edged.spec import Method

    torch.manual_seed(0)
    architecture = _architecture(network)
    model = build(architecture).eval().requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    source = Source("0" * 64, sum(4 * value.numel() for value in model.state_dict().values()), network, "none")
    loaded = LoadedNetwork(model, architecture, architecture.default_input, source)
    images = folder / "images"
    _write_images(images)
    for name, (bits, activation_bits) in SPECS.items():
        spec = QuantSpec(method=Method.RTN, bits=bits, activation_bits=activation_bits)
        quantize(loaded, images, folder / name, spec)
    plain = folder / "plain.onnx"
    # In the dialect of TensorRT, because its opset is one that NNCF writes no invalid QuantizeLinear for.
    in_float = onnx_model(model, {}, None, architecture, loaded.input, target="tensorrt")
    plain.write_bytes(in_float.SerializeToString())
    cache = build_cache(images, folder / "cache", loaded.input)
    for peer in peers:
        some = cache.calibration[:4]
        quantize_with_peer(peer, plain, folder / f"{peer}.onnx", cache, some, 1, reduce_range=processor_saturates())


def _architecture(network: str) -> Architecture:
    from edged.models.architecture import Architecture
    from edged.models.yolov5.standard import standard

    if network.startswith("yolov5"):
        return Architecture.detector(standard(network.removeprefix("yolov5"), tuple(map(str, range(80)))))
    return Architecture(network, 1000)


def _write_images(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{index}.png")


def _measure(rows: Mapping[str, Row], folder: Path, threads: int, rounds: int, batch: int) -> dict[str, Measured]:
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    children = []
    for label, row in rows.items():
        ours, theirs = context.Pipe()
        source = folder / row.source
        size = _architecture_size(folder)
        child = context.Process(target=_serve, args=(theirs, source, row.engine, threads, batch, size), daemon=True)
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
    for child in children:
        child.join()
    return {
        label: Measured(1e3 * statistics.median(each), memory[label], _file_bytes(folder / rows[label].source))
        for label, each in seconds.items()
    }


def _architecture_size(folder: Path) -> int:
    from edged.artifacts.reader import read_artifact

    return read_artifact(folder / "float").input.size


def _file_bytes(source: Path) -> int:
    return (source if source.is_file() else source / "model.onnx").stat().st_size


def _serve(connection: Connection, source: Path, engine: str, threads: int, batch: int, size: int) -> None:
    """Load as a generation does, send the resident memory, then compute a request each time that it is asked."""
    from edged.heap import trim_heap

    executor = _open(source, engine, threads)
    trim_heap()
    images = np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)
    for _ in range(3):
        executor.run(images)
    connection.send(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    while connection.recv():
        start = time.perf_counter()
        executor.run(images)
        connection.send(time.perf_counter() - start)


def _open(source: Path, engine: str, threads: int) -> Executor:
    from edged.artifacts.engines import open_executor
    from edged.artifacts.reader import read_artifact

    if source.is_dir():
        return open_executor(read_artifact(source), engine, threads)
    if engine == "openvino":
        from edged.execution.openvino_executor import OpenVinoExecutor

        return OpenVinoExecutor(source, threads)
    from edged.execution.executors import OnnxExecutor

    return OnnxExecutor(source, threads)


def _table(measured: Mapping[str, Measured]) -> str:
    torch = measured[TORCH]
    rows = [
        [
            label,
            f"{row.ms:.1f}",
            f"{torch.ms / row.ms:.2f}",
            f"{measured[FLOAT].ms / row.ms:.2f}",
            row.memory >> 20,
            f"{row.memory / torch.memory:.2f}",
            f"{row.file / 1e6:.2f}" if label != TORCH else "",
        ]
        for label, row in measured.items()
    ]
    header = ["engine", "ms", "times torch", "times ONNX Runtime's float", "RSS, MiB", "share of torch's", "file, MB"]
    return table(header, rows)


def _goals(network: str, measured: Mapping[str, Measured]) -> list[Goal]:
    """Compare with the goals; those of time depend on the CPU."""
    integer, reference, torch = measured[INTEGER], measured[FLOAT], measured[TORCH]
    faster = reference.ms / integer.ms
    vnni = not processor_saturates()
    goals = []
    if network == "resnet18":
        least, of_torch = (3.5, 6.0) if vnni else (1.9, 3.0)
        goals.append(goal(f"ResNet-18: integers >= {least} times float", f"{faster:.2f}", faster >= least))
        against = torch.ms / integer.ms
        goals.append(goal(f"ResNet-18: integers >= {of_torch} times torch", f"{against:.2f}", against >= of_torch))
    if network == "yolov5n":
        least = 3.0 if vnni else 2.1
        goals.append(goal(f"YOLOv5n: integers >= {least} times float", f"{faster:.2f}", faster >= least))
    if static := measured.get(STATIC_ROW):
        share = integer.ms / static.ms
        goals.append(goal(f"{network}: at most 1.03 times the time of quantize_static", f"{share:.2f}", share <= 1.03))
    size = measured[PACKED].file / integer.file
    goals.append(goal(f"{network}: the file of w4a8 at most 0.52 of w8a8's", f"{size:.2f}", size <= 0.52))
    memory = integer.memory / torch.memory
    goals.append(goal(f"{network}: resident memory at most 0.30 of torch's", f"{memory:.2f}", memory <= 0.30))
    return goals


if __name__ == "__main__":
    main()
