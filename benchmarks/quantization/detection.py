"""Measure mAP of a quantized YOLOv5 by recipe and width, like Table 2 of arXiv 2509.05576.

Requires EDGED_DATA with weights/ and coco/. The 128 images of coco/calib are used for calibration (a tenth of them is
held out to choose the statistics), without augmentation; the 128 of coco/val for evaluation. Each width and recipe has
a line: mAP@.5 and mAP@.5:.95 in percent, the drop of the latter, agreement with full precision at serving thresholds
(matched boxes, percent), seconds, seconds as a multiple of one forward pass over the calibration images, and peak
memory of the process that quantizes. The time of OBQ is extrapolated from a few rows of each layer size. "4+8" is 4
bits with the first layer and the heads at 8. Usage:

    python -m benchmarks.detection [--bits 8 6 4 4+8] [--recipes rtn paper fast ...] [--weights yolov5n.pt]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.markdown import line, table
from benchmarks.options import parser_of
from benchmarks.quantization.networks import data_root
from edged.calibration.dataset import ImageCache, build_cache
from edged.calibration.yolo_labels import Boxes, read_labels
from edged.compress import compress
from edged.evaluation.classification import predict
from edged.evaluation.detection import Precision, agreement, average_precision, detect_all
from edged.memory import peak_bytes
from edged.models.architecture import Architecture
from edged.models.checkpoint import read_checkpoint
from edged.models.detections import Detections
from edged.models.layers import quantizable_layers
from edged.models.registry import load_model, recognize
from edged.models.yolov5.plan import Plan
from edged.quant.grid import minmax_grid
from edged.quant.obq import quantize_rows_greedily
from edged.spec import EVALUATION, RECIPES, DetectionSpec, QuantSpec, Scheme, recipe

OBQ_ROWS = 2
HEADER = ("bits", "recipe", "mAP@.5", "mAP@.5:.95", "drop", "agreement %", "seconds", "/ forward", "MiB")


@dataclass(frozen=True)
class Loaded:
    """A detector with its images."""

    model: nn.Module
    architecture: Architecture
    calibration: ImageCache
    test: ImageCache
    labels: list[Boxes | None]

    @property
    def plan(self) -> Plan:
        """Return the plan of the detector, or exit if the network is not a detector."""
        if self.architecture.plan is None:
            sys.exit(f"the weights are a {self.architecture.name}, not a detector")
        return self.architecture.plan


def main() -> None:
    """Print the table; measure each line in a process of its own."""
    parser = parser_of(__doc__)
    parser.add_argument("--weights", default="yolov5n.pt")
    parser.add_argument("--bits", nargs="+", default=["8", "6", "4", "4+8"])
    parser.add_argument("--recipes", nargs="+", choices=["rtn", *RECIPES], default=["rtn", "paper", "balanced", "best"])
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--reference", type=float, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = data_root()
    if options.cache:
        loaded = load(root, options.weights, Path(options.cache))
        measure(loaded, options.bits[0], options.recipes[0], *options.reference)
        return
    with tempfile.TemporaryDirectory() as cache:
        loaded = load(root, options.weights, Path(cache))
        score, forward_s = full_precision(loaded)
        print(f"{torch.get_num_threads()} threads; a forward pass takes {forward_s:.1f} s")
        full = (32, "FP32", f"{score.map50:.2f}", f"{score.map50_95:.2f}", *[""] * 5)
        print(table(HEADER, [full]))
        command = [
            sys.executable,
            "-m",
            "benchmarks.quantization.detection",
            "--weights",
            options.weights,
            "--cache",
            cache,
        ]
        for bits in options.bits:
            for name in options.recipes:
                extra = ["--bits", bits, "--recipes", name, "--reference", str(score.map50_95), str(forward_s)]
                sys.stdout.flush()
                subprocess.run([*command, *extra], check=True)
        seconds = obq_seconds(loaded.model)
        print(line(("any", "obq, extrapolated", *[""] * 4, f"{seconds:.0f}", f"{seconds / forward_s:.0f}", "")))


def load(root: Path, weights: str, cache_root: Path) -> Loaded:
    """Load checkpoint, images and labels."""
    checkpoint = read_checkpoint(root / "weights" / weights)
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    model = load_model(checkpoint.state, architecture)
    calibration, test = (
        build_cache(root / "coco" / part, cache_root, architecture.default_input) for part in ("calib", "val")
    )
    labels = read_labels(root / "coco" / "val", test.files)
    if labels is None:
        sys.exit("coco/val has no labels")
    return Loaded(model.to(memory_format=torch.channels_last), architecture, calibration, test, labels.boxes)  # type: ignore[call-overload]


def full_precision(loaded: Loaded) -> tuple[Precision, float]:
    """Return the score of full precision, and the seconds of a forward pass over the calibration images."""
    score = average_precision(found(loaded, loaded.model, EVALUATION), loaded.labels, loaded.test.sizes)
    start = time.perf_counter()
    for part in loaded.calibration.calibration.split(4):
        predict(loaded.model, loaded.calibration, part)
    return score, time.perf_counter() - start


def measure(loaded: Loaded, bits: str, name: str, reference: float, forward_s: float) -> None:
    """Quantize once and print a line."""
    start = time.perf_counter()
    done = compress(loaded.model, loaded.calibration, spec_of(name, bits))
    seconds = time.perf_counter() - start
    peak = peak_bytes() >> 20
    score = average_precision(found(loaded, done.model, EVALUATION), loaded.labels, loaded.test.sizes)
    serving = DetectionSpec()
    same = agreement(found(loaded, loaded.model, serving), found(loaded, done.model, serving))
    quality = (f"{score.map50:.2f}", f"{score.map50_95:.2f}", f"{reference - score.map50_95:+.2f}", f"{same:.1f}")
    print(line((bits, name, *quality, f"{seconds:.0f}", f"{seconds / forward_s:.1f}", peak)))


def found(loaded: Loaded, model: nn.Module, spec: DetectionSpec) -> list[Detections]:
    """Return the boxes in the test images."""
    return detect_all(model, loaded.plan, loaded.test, torch.arange(len(loaded.test)), spec)


def spec_of(name: str, bits: str) -> QuantSpec:
    """Return a recipe without augmentation, or rounding to nearest without any correction."""
    width, _, ends = bits.partition("+")
    chosen = {"bits": int(width), "first_bits": int(ends) if ends else None, "last_bits": int(ends) if ends else None}
    if name == "rtn":
        return recipe("fast", method="rtn", statistics="none", **chosen)
    return recipe(name, augmentation=1, **chosen)


def obq_seconds(model: nn.Module) -> float:
    """Return the estimated seconds of OBQ: a few rows of each layer size are timed, and all rows take the same time."""
    layers = list(quantizable_layers(model).values())
    row_s = {d: _row_seconds(d) for d in sorted({layer.weight[0].numel() for layer in layers})}
    return sum(layer.weight.shape[0] * row_s[layer.weight[0].numel()] for layer in layers)


def _row_seconds(d: int) -> float:
    generator = torch.Generator().manual_seed(d)
    X = torch.randn(d, 2 * d, generator=generator)
    W, H = torch.randn(OBQ_ROWS, d, generator=generator), X @ X.t() / d
    grid = minmax_grid(W, 4, Scheme.ASYMMETRIC)
    start = time.perf_counter()
    quantize_rows_greedily(W, H, grid)
    return (time.perf_counter() - start) / OBQ_ROWS


if __name__ == "__main__":
    main()
