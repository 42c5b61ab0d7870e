"""Measure Tables 1, 2 and 3 of arXiv 2509.05576, beside the paper's figures.

At full size this takes ImageNet and COCO, torchvision's release weights of ResNet-18 and -50, and YOLOv5's of s and m,
all under their published names. The folders hold images as `edged compare` takes them:

    weights/    resnet18-f37072fd.pth, resnet50-*.pth, yolov5s.pt, yolov5m.pt
    imagenet/   train/ and val/, a folder for each class, named by its wnid
    coco/       train/ and val/, with images/ and labels/

What is missing has empty cells. Table 1 compares methods at 4 bits, Table 2 widths on detectors, Table 3 orders of
columns. --small adds the same tables of the small networks and images of EDGED_DATA. Rows are kept in the folder of
--rows, so that an interrupted run goes on. Usage:

    python -m benchmarks.paper --weights weights --imagenet imagenet --coco coco --rows rows --out docs/paper.md
    python -m benchmarks.paper --small --rows rows --out docs/paper.md
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkout import commit
from benchmarks.markdown import paragraph, table
from benchmarks.options import parser_of
from benchmarks.quantization.networks import data_root
from edged.progress import ProgressListener, SilentListener
from service.comparison.job import FULL_PRECISION, Measurement
from service.comparison.runner import compare, in_own_process, measurements

Row = dict[str, Any]
METHODS = ("rtn", "bias-correction", "adaround", "adaquant", "bit-split", "brecq", "obq", "paper", "fast", "balanced")
ORDERS = ("none", "error", "weight", "sensitivity")
MIB = 1 << 20


@dataclass(frozen=True)
class Network:
    """A network and its images.

    Attributes:
        name: Name in the table.
        weights: Pattern of the file's name in the folder of weights.
        images: Option with the folder of all images; "" for EDGED_DATA.
        calibration: Folder of calibration images in it.
        test: Folder of test images in it.
        input: Fields of InputSpec that differ from the architecture's default.
    """

    name: str
    weights: str
    images: str
    calibration: str
    test: str
    input: Mapping[str, int] = dataclasses.field(default_factory=dict)


_IMAGENET, _COCO = ("imagenet", "train", "val"), ("coco", "train", "val")
CLASSIFIERS = (Network("ResNet-18", "resnet18-*.pth", *_IMAGENET), Network("ResNet-50", "resnet50-*.pth", *_IMAGENET))
DETECTORS = (Network("YOLOv5s", "yolov5s.pt", *_COCO), Network("YOLOv5m", "yolov5m.pt", *_COCO))
_SIDES = {"size": 128, "resize": 144}
IMAGENETTE = Network(
    "ResNet-18, imagenette", "resnet18-imagenette.pth", "", "imagenette/calib", "imagenette/val", _SIDES
)
YOLOV5N = Network("YOLOv5n, 128 images", "yolov5n.pt", "", "coco/calib", "coco/val")

# (network, method): accuracy in percent, seconds, MB. The GPU is not named.
TABLE_1: Mapping[tuple[str, str], tuple[float, float | None, float | None]] = {
    ("ResNet-18", FULL_PRECISION): (69.76, None, None),
    ("ResNet-18", "paper"): (69.37, 58, 3069),
    ("ResNet-18", "obq"): (69.33, 7784, 6502),
    ("ResNet-50", FULL_PRECISION): (76.13, None, None),
    ("ResNet-50", "paper"): (75.77, 80, 3683),
    ("ResNet-50", "obq"): (75.71, 9287, 6859),
}
# (network, bits): mAP50-95 in percent, seconds. The paper's columns are swapped: this one is headed mAP50 there.
TABLE_2: Mapping[tuple[str, int], tuple[float, float | None]] = {
    ("YOLOv5s", 32): (37.46, None),
    ("YOLOv5s", 8): (37.36, 22),
    ("YOLOv5s", 6): (36.60, 17),
    ("YOLOv5m", 32): (45.16, None),
    ("YOLOv5m", 8): (45.08, 39),
    ("YOLOv5m", 6): (44.37, 36),
}
# Order of ResNet-50's columns at 4 bits, one for all rows of a layer: top-1 in percent.
TABLE_3: Mapping[str, float] = {"none": 75.52, "error": 75.62, "weight": 75.66, "sensitivity": 75.67}


def main() -> None:
    """Print the tables, and write them if requested."""
    parser = parser_of(__doc__)
    for name, what in (("weights", "the checkpoints"), ("imagenet", "ImageNet"), ("coco", "COCO")):
        parser.add_argument(f"--{name}", type=Path, help=f"folder of {what}")
    parser.add_argument("--small", action="store_true", help="measure the networks and images of EDGED_DATA instead")
    parser.add_argument("--tables", type=int, nargs="+", choices=(1, 2, 3), default=(1, 2, 3))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="of Table 1")
    parser.add_argument("--iterations", type=int, help="most steps of a layer or block; default: each paper's number")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rows", type=Path, required=True, help="folder in which rows and decoded images are kept")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    options = parser.parse_args()
    page = [f"# The paper's tables\n\n{_introduction(options)}", "## At full size"]
    page += [_TABLES[number](options, *_FULL[number]) for number in options.tables]
    if options.small:
        page.append(f"## On small sets\n\n{_SMALL_SETS}")
        page += [_TABLES[number](options, *_SMALL[number]) for number in options.tables]
    print("\n\n".join(page))
    if options.out:
        options.out.write_text("\n\n".join(page) + "\n")


def table_1(options: argparse.Namespace, *networks: Network) -> str:
    """Return the methods at 4 bits: accuracy, seconds, passes over the calibration images and memory."""
    lines = []
    for network in networks:
        rows = _measured(options, network, options.methods, (4,))
        for method in (FULL_PRECISION, *options.methods):
            accuracy, seconds, memory = TABLE_1.get((network.name, method), (None, None, None))
            row = _row(rows, method, 32 if method == FULL_PRECISION else 4)
            lines.append((network.name, method, _figure(accuracy, 2), _figure(seconds), _figure(memory), *_cells(row)))
    header = ("network", "method", "paper: top-1", "s", "MB", "here: top-1", "drop", "s", "passes", "added MiB")
    return f"### Table 1: methods at 4 bits\n\n{table(header, lines)}"


def table_2(options: argparse.Namespace, *networks: Network) -> str:
    """Return detectors by bits: mAP50-95 and seconds."""
    lines = []
    for network in networks:
        rows = _measured(options, network, ("paper", "balanced"), (8, 6))
        for method, bits in ((FULL_PRECISION, 32), *((m, b) for b in (8, 6) for m in ("paper", "balanced"))):
            there = TABLE_2.get((network.name, bits), (None, None))
            precision, seconds = (None, None) if method == "balanced" else there
            shown = (_figure(precision, 2), _figure(seconds))
            lines.append((network.name, bits, method, *shown, *_cells(_row(rows, method, bits))))
    header = ("network", "bits", "method", "paper: mAP50-95", "s", "here: mAP50-95", "drop", "s", "passes", "added MiB")
    return f"### Table 2: detectors\n\n{table(header, lines)}"


def table_3(options: argparse.Namespace, network: Network) -> str:
    """Return orders of columns, one for all rows of a layer, at 4 bits: accuracy."""
    lines = []
    for order in ORDERS:
        rows = _measured(options, network, ("paper",), (4,), order=order)
        there = TABLE_3[order] if network is CLASSIFIERS[1] else None
        lines.append((order, _figure(there, 2), *_cells(_row(rows, "paper", 4))[:2]))
    header = ("order", "paper: top-1", "here: top-1", "drop")
    return f"### Table 3: orders of columns, {network.name}\n\n{table(header, lines)}"


_TABLES: Mapping[int, Callable[..., str]] = {1: table_1, 2: table_2, 3: table_3}
_FULL: Mapping[int, tuple[Network, ...]] = {1: CLASSIFIERS, 2: DETECTORS, 3: CLASSIFIERS[1:]}
_SMALL: Mapping[int, tuple[Network, ...]] = {1: (IMAGENETTE,), 2: (YOLOV5N,), 3: (IMAGENETTE,)}


def _measured(
    options: argparse.Namespace, network: Network, methods: Sequence[str], bits: Sequence[int], **settings: str
) -> list[Row]:
    """Measure a network; return no rows where its checkpoint or its images are not at hand."""
    base = _base(options, network)
    if base is None:
        return []
    wanted = list(measurements(dataclasses.replace(base, settings=settings), methods, bits))
    out = options.rows / "-".join([network.name, *settings.values()])
    rows: list[Row] = compare(wanted, out, SilentListener(), _noted)["rows"]
    return [row if "error" in row else row | {"drop": _accuracy(rows[0]) - _accuracy(row)} for row in rows]


def _noted(job: Measurement, listener: ProgressListener, label: str) -> Row:
    row = in_own_process(job, listener, label)
    print(json.dumps({key: row[key] for key in ("method", "bits", "seconds", "passes", "score")}), flush=True)
    return row


def _base(options: argparse.Namespace, network: Network) -> Measurement | None:
    """Return what all measurements of a network share; None where its files are not at hand."""
    if network.images:
        weights, images = options.weights, getattr(options, network.images)
    else:
        weights, images = data_root() / "weights", data_root()
    found = sorted(weights.glob(network.weights)) if weights and images else []
    if not found:
        return None
    cache = options.rows / "images"
    cache.mkdir(parents=True, exist_ok=True)
    return Measurement(
        found[0],
        images / network.calibration,
        images / network.test,
        cache,
        input=dict(network.input),
        images=1024,
        iterations=options.iterations,
        device=options.device,
    )


def _row(rows: Iterable[Row], method: str, bits: int) -> Row | None:
    return next((row for row in rows if (row["method"], row["bits"]) == (method, bits)), None)


def _cells(row: Row | None) -> tuple[str, ...]:
    """Return accuracy, drop, seconds, passes and MiB of a row; empty ones without a row."""
    if row is None:
        return ("",) * 5
    if "error" in row:
        return ("failed", *[""] * 4)
    accuracy = _accuracy(row)
    if row["method"] == FULL_PRECISION:
        return (f"{accuracy:.2f}", *[""] * 4)
    memory = row["added_bytes"] / MIB
    return f"{accuracy:.2f}", f"{row['drop']:+.2f}", f"{row['seconds']:.1f}", f"{row['passes']:.2f}", f"{memory:.0f}"


def _accuracy(row: Row) -> float:
    return float(row["score"].get("top1", row["score"].get("map50_95")))


def _figure(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _introduction(options: argparse.Namespace) -> str:
    command = "python -m benchmarks.paper" + " --small" * options.small
    if options.methods != METHODS:
        command += f" --methods {' '.join(options.methods)}"
    if options.iterations is not None:
        command += f" --iterations {options.iterations}"
    text = (
        f"Figures of arXiv 2509.05576, whose GPU is not named, beside those of `{command}`, at {commit()}. Empty cells"
        " were not measured, or are not in the paper: at full size they need ImageNet, COCO and release weights."
        " Compare times only within this run, which may have been beside other work."
    )
    return paragraph(text)


_SMALL_SETS = """\
A ResNet-18 that was trained on imagenette, at 128 pixels, with 1,024 calibration images, and the genuine YOLOv5n with
128 images of COCO to calibrate and 128 to test. Top-1 and mAP50-95 in percent; a pass is a forward pass over the
calibration images in the same process."""


if __name__ == "__main__":
    main()
