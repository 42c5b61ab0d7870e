"""Measure the accuracy of networks whose activations are quantized, computed by ONNX Runtime on integers.

Requires EDGED_DATA. Classifiers are calibrated with 1,024 images and scored by top-1 on the test images of
benchmarks.accuracy, yolov5n is calibrated with the 128 images of coco/calib and scored by mAP@.5:.95 on the 128 of
coco/val. Each drop is that of the same images in full precision, with its standard error: of the paired differences for
top-1, by a jackknife over sixteenths of the images for mAP. The file is model.onnx. --peers adds the 8-bit files of
ONNX Runtime's quantize_static and of NNCF (`pip install 'edged[bench]'`), made from as many of the same images as
fit in memory, with the same layers in float. Usage:

    python -m benchmarks.activations [--networks resnet20 resnet18 yolov5n] [--bits 8 7 4] [--peers]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.markdown import line, table
from benchmarks.options import parser_of
from benchmarks.quantization import detection, networks
from benchmarks.quantization.tables import TITLES
from edged.calibration.dataset import ImageCache
from edged.calibration.yolo_labels import Boxes
from edged.comparators.peers.onnx_tools import PEERS, is_installed, quantize_with_peer
from edged.compress import compress
from edged.evaluation.detection import agreement, average_precision, average_precision_without, detections_of
from edged.evaluation.fidelity import fidelity
from edged.evaluation.standard_errors import sample_of_groups, standard_error
from edged.execution.executors import Executor, OnnxExecutor
from edged.execution.onnx_model import onnx_model
from edged.execution.processor import processor_saturates
from edged.models.architecture import Architecture
from edged.models.checkpoint import read_checkpoint
from edged.models.detections import Detections
from edged.models.registry import recognize
from edged.spec import EVALUATION, FLOAT, INTEGER, DetectionSpec, recipe

DETECTOR = "yolov5n"
NETWORKS = ("resnet20", "resnet18", DETECTOR)
HEADER = ("network", "quantized", "full precision", "integers", "drop", "agreement %", "file, kB")
BATCH = 16
MAX_PIXELS = 32 * 640**2  # for the tools of others: quantize_static keeps the activations of all images in memory
PARTS = 16  # of the images, each of which a jackknife leaves out

INTRODUCTION = """\
# Accuracy on integers

`python -m benchmarks.activations --peers --out docs/activations.md` on {machine}.

Weights and activations are codes, and ONNX Runtime computes on them. Classifiers are calibrated with 1,024 images and
scored by top-1 on 10,000 (CIFAR) and 1,966 (imagenette) others; yolov5n is calibrated with 128 images of COCO and
scored on 128 others. A drop is in points below full precision on the same images, with its standard error: of paired
differences for top-1, by a jackknife over sixteenths of the images for mAP. With w4a8, layers with few weights and a
detector's output layers have 7 bits (`small_bits`). `--peers` adds the rows of ONNX Runtime's `quantize_static` and of
NNCF, which get as many of the same images as fit in memory, and keep the same layers in float. With ONNX Runtime's
settings, entropy has as many bins as quantized values, so it chooses the whole range, as minmax does.

The goals for the drop were 0.1 (w8a8) and 0.4 (w4a8) for classifiers, which are met, and for yolov5n 1.0 (w8a8), 0.5
(SiLU in float) and 2.0 (w4a8), which are missed. NNCF is ahead for yolov5n; the difference is within the standard
error.

"""

Score = tuple[float, float, float]  # score, drop and its standard error


@dataclass(frozen=True)
class Row:
    """A network that computes on integers.

    Attributes:
        network: Its name.
        kind: Bits per weight and activation, or the tool of others.
        score: Top-1 or mAP, percent.
        drop: Points below full precision on the same images.
        error: Standard error of the drop.
        agreement: Images or boxes on which both agree, percent.
        size: Bytes of model.onnx.
    """

    network: str
    kind: str
    score: float
    drop: float
    error: float
    agreement: float
    size: int

    def cells(self) -> tuple[str, ...]:
        """Return the row as cells of a table."""
        name = TITLES.get(self.network, f"{self.network} on COCO, mAP@.5:.95")
        return (
            name,
            self.kind,
            f"{self.score + self.drop:.2f}",
            f"{self.score:.2f}",
            f"{self.drop:+.2f} ± {self.error:.2f}",
            f"{self.agreement:.1f}",
            f"{self.size / 1000:.0f}",
        )


def main() -> None:
    """Print the table, and write it if requested."""
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 7, 4])
    parser.add_argument("--recipe", default="balanced")
    parser.add_argument("--peers", action="store_true", help="also measure the tools of others that are installed")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy-cache"), help="folder for decoded images")
    parser.add_argument("--machine", default=f"{torch.get_num_threads()} threads", help="description of this machine")
    parser.add_argument("--out", type=Path, help="write a page")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    print(table(HEADER, []))
    rows = []
    for row in measured(options):
        print(line(row.cells()), flush=True)
        rows.append(row)
    if options.out:
        options.out.write_text(page(rows, options.machine))


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of each network and width."""
    root = networks.data_root()
    for name in options.networks:
        if name == DETECTOR:
            detector = detection.load(root, f"{name}.pt", options.cache)
            reference = boxes(detector.model, detector)
            for kind, model in files(detector.model, detector.calibration, detector.architecture, options):
                yield detector_row(name, kind, detector, reference, model)
            continue
        loaded = networks.load(name, options.cache)
        state = read_checkpoint(root / "weights" / networks.NETWORKS[name].file).state
        for kind, model in files(loaded.model, loaded.calibration, recognize(state), options):
            yield classifier_row(name, kind, loaded, model)


def files(
    model: nn.Module, cache: ImageCache, architecture: Architecture, options: argparse.Namespace
) -> Iterator[tuple[str, bytes]]:
    """Yield what each row is called, and its ONNX file."""
    for bits in options.bits:
        yield from ours(bits, model, cache, architecture, options.recipe)
    if not options.peers:
        return
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "peer.onnx"
        # In the dialect of TensorRT, because its opset is one that NNCF writes no invalid QuantizeLinear for.
        in_float = onnx_model(model, {}, None, architecture, cache.input, target="tensorrt")
        source.write_bytes(in_float.SerializeToString())
        for peer in filter(is_installed, PEERS):
            images = cache.calibration[: MAX_PIXELS // cache.input.size**2]
            quantize_with_peer(peer, source, target, cache, images, BATCH, reduce_range=processor_saturates())
            yield peer, target.read_bytes()


def ours(
    bits: int, model: nn.Module, cache: ImageCache, architecture: Architecture, name: str
) -> Iterator[tuple[str, bytes]]:
    """Yield model.onnx of a network with these bits per weight and 8 per activation, for each way to compute SiLU."""
    done = compress(model, cache, recipe(name, bits=bits, activation_bits=8))
    for silu in (INTEGER, FLOAT) if architecture.plan is not None else (INTEGER,):
        activations = done.activations and dataclasses.replace(done.activations, silu=silu)
        onnx = onnx_model(done.model, done.quantized, activations, architecture, cache.input)
        yield f"w{bits}a8{', SiLU in float' * (silu == FLOAT)}", onnx.SerializeToString()


def classifier_row(name: str, kind: str, loaded: networks.Loaded, model: bytes) -> Row:
    """Score a classifier."""
    executor = OnnxExecutor(model, torch.get_num_threads())
    logits = torch.cat([computed(executor, batch) for batch in batches(loaded.test)])
    hits, wanted = (outputs.argmax(1) == loaded.labels for outputs in (logits, loaded.reference))
    score, drop, error = paired(hits.numpy(), wanted.numpy())
    return Row(name, kind, score, drop, error, fidelity(loaded.reference, logits).agreement, len(model))


def paired(hits: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> Score:
    """Return the share of hits in percent, how far it is below the reference's, and the standard error of that."""
    difference = reference.astype(np.float64) - hits
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return 100 * float(hits.mean()), 100 * float(difference.mean()), 100 * error


def detector_row(
    name: str, kind: str, loaded: detection.Loaded, reference: tuple[list[Detections], list[Detections]], model: bytes
) -> Row:
    """Score a detector."""
    executor = OnnxExecutor(model, torch.get_num_threads())
    found, confident = boxes(lambda images: computed(executor, images), loaded)
    score, drop, error = jackknife(found, reference[0], loaded.labels, loaded.test.sizes)
    return Row(name, kind, score, drop, error, agreement(reference[1], confident), len(model))


def boxes(compute: Callable[[Tensor], Tensor], loaded: detection.Loaded) -> tuple[list[Detections], list[Detections]]:
    """Return the boxes in the test images that count for mAP, and those that are served."""
    counted, confident = [], []
    for index in range(len(loaded.test)):
        place = torch.tensor([index])
        with torch.inference_mode():
            raw = compute(loaded.test.batch(place))
        counted += detections_of(raw, loaded.plan, loaded.test, place, EVALUATION)
        confident += detections_of(raw, loaded.plan, loaded.test, place, DetectionSpec())
    return counted, confident


def jackknife(
    found: Sequence[Detections],
    reference: Sequence[Detections],
    labels: Sequence[Boxes | None],
    sizes: Sequence[tuple[int, int]],
) -> Score:
    """Return mAP@.5:.95 in percent, how far it is below that of the reference, and the standard error of that."""
    score, wanted = (average_precision(some, labels, sizes).map50_95 for some in (found, reference))
    samples = (sample_of_groups(average_precision_without(some, labels, sizes, PARTS)) for some in (found, reference))
    return score, wanted - score, standard_error(*samples)


def computed(executor: Executor, images: Tensor) -> Tensor:
    """Return the outputs of an engine."""
    return torch.from_numpy(executor.run(images.contiguous().numpy()))


def batches(cache: ImageCache) -> Iterator[Tensor]:
    """Yield all images."""
    return cache.batches(torch.arange(len(cache)), BATCH)


def page(rows: Sequence[Row], machine: str) -> str:
    """Return the page with the table."""
    return INTRODUCTION.format(machine=machine) + table(HEADER, [row.cells() for row in rows]) + "\n"


if __name__ == "__main__":
    main()
