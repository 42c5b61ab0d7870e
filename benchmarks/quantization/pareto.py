"""Compare bits that are chosen for each layer with one width for all: accuracy against bytes.

Uniform widths from 2 to 8 bits, then `bits: auto` with the bytes of such an artifact as its limit (and shares of them),
all with the recipe `balanced`. Requires EDGED_DATA with weights/ and cifar10/, imagenette/ or coco/. Rows are kept in a
file, so that single ones can be measured again.

    python -m benchmarks.quantization.pareto --out docs/mixed-precision
    python -m benchmarks.quantization.pareto --networks resnet56 yolov5n --uniform 4 --limits 4 3.25
    python -m benchmarks.quantization.pareto --render --out docs/mixed-precision     # measure nothing
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.markdown import paragraph, table
from benchmarks.options import parser_of
from benchmarks.quantization import pareto_detector
from benchmarks.quantization.networks import NETWORKS, TEST_BATCH, Loaded, load
from benchmarks.quantization.pareto_detector import DETECTORS, Detector
from benchmarks.quantization.results import pack_hits, unpacked
from edged.artifacts.weights import stored_bytes
from edged.engine.memory_plan import Resources
from edged.evaluation.classification import accuracy, predict
from edged.evaluation.fidelity import fidelity
from edged.models.layers import quantizable_layers
from edged.models.registry import recognize
from edged.pipeline.evaluation import Labels
from edged.pipeline.mixed_precision import Compressor, HeldOut
from edged.progress import SilentListener
from edged.spec import AUTO, DetectionSpec, recipe

CLASSIFIERS = tuple(NETWORKS)
Measure = Callable[[str, float], dict[str, Any]]  # method and bits to a row
WIDTH, HEIGHT, LEFT, TOP = 560, 300, 64, 56
COLORS = {"uniform": "#e08214", "auto": "#2f7ed8"}
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.page { fill: #ffffff } .grid { stroke: #d0d7de; stroke-width: 1 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d } }
"""


def main() -> None:
    """Measure what the options select, print the tables, and write them if requested."""
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=(*CLASSIFIERS, *DETECTORS), default=["resnet20"])
    parser.add_argument("--uniform", type=int, nargs="*", default=[2, 3, 4, 5, 6, 7, 8], help="widths for all layers")
    parser.add_argument(
        "--limits", type=float, nargs="*", default=[2.5, 3, 3.4, 4, 5], help="mean bits that limit auto"
    )
    parser.add_argument("--test-images", type=int, help="test images of a classifier to draw (all)")
    parser.add_argument("--render", action="store_true", help="only write the table and the picture")
    parser.add_argument("--results", type=Path, default=Path("build/pareto.json"), help="file in which rows are kept")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy-cache"), help="folder for decoded images")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.svg")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    if not options.render:
        options.cache.mkdir(parents=True, exist_ok=True)
        for name in options.networks:
            measure = (
                detector(name, options.cache)
                if name in DETECTORS
                else classifier(name, options.cache, options.test_images)
            )
            jobs = [("uniform", float(bits)) for bits in options.uniform] + [("auto", each) for each in options.limits]
            for method, bits in jobs:
                row = measure(method, bits)
                rows = [
                    each for each in rows if (each["network"], each["method"], each["bits"]) != (name, method, bits)
                ]
                rows.append(row)
                options.results.parent.mkdir(parents=True, exist_ok=True)
                options.results.write_text(json.dumps(rows))
                print({key: value for key, value in row.items() if key != "hits"}, flush=True)
    print(document(rows))
    if options.out:
        options.out.with_suffix(".md").write_text(document(rows, options.out.name))
        options.out.with_suffix(".svg").write_text(draw(rows))


def classifier(name: str, cache: Path, test_images: int | None = None) -> Measure:
    """Return what measures rows of a classifier, whose layers are measured once.

    Args:
        name: Name of the network.
        cache: Folder for decoded images.
        test_images: Number of test images to draw; None for all.
    """
    loaded = load(name, cache, test_images)
    return functools.partial(measure_classifier, name, loaded, compressor_of(loaded))


def detector(name: str, cache: Path) -> Measure:
    """Return what measures rows of a detector, whose layers are measured once.

    Args:
        name: Name of the network.
        cache: Folder for decoded images.
    """
    found = Detector(name, cache)
    return lambda method, bits: found.measure(method, bits, limit_of(found.loaded.model, bits))


def compressor_of(loaded: Loaded) -> Compressor:
    """Return what quantizes the network, as the pipeline does it."""
    labels = Labels(classes=loaded.calibration.labels_of(loaded.calibration.held_out))
    held_out = HeldOut(recognize(loaded.model.state_dict()), labels, DetectionSpec())
    return Compressor(loaded.model, loaded.calibration, held_out, Resources(), SilentListener())


def measure_classifier(name: str, loaded: Loaded, compressor: Compressor, method: str, bits: float) -> dict[str, Any]:
    """Quantize once and return accuracy, bytes and seconds; those of the first `auto` include measuring the layers."""
    start = time.perf_counter()
    if method == "uniform":
        done = compressor(recipe("balanced", bits=int(bits)))
    else:
        done = compressor(recipe("balanced", bits=AUTO, size_limit=limit_of(loaded.model, bits)))
    seconds = time.perf_counter() - start
    logits = predict(done.model, loaded.test, torch.arange(len(loaded.test)), batch_size=TEST_BATCH)
    widths = {key: weight.bits for key, weight in done.quantized.items()}
    return {
        "network": name,
        "method": method,
        "bits": bits,
        "bytes": stored_bytes(loaded.model.state_dict(), widths),
        "top1": accuracy(logits, loaded.labels).top1,
        "reference_top1": accuracy(loaded.reference, loaded.labels).top1,
        "agreement": fidelity(loaded.reference, logits).agreement,
        "relative_error": fidelity(loaded.reference, logits).relative_error,
        "seconds": seconds,
        "hits": pack_hits((logits.argmax(1) == loaded.labels).numpy()),
        "images": len(loaded.test),
        "widths": list(widths.values()),
    }


def limit_of(model: nn.Module, bits: float) -> int:
    """Return the bytes of the artifact at a width; between two whole widths as many as the share between them."""
    state, names = model.state_dict(), [f"{name}.weight" for name in quantizable_layers(model)]
    below, above = (stored_bytes(state, dict.fromkeys(names, width)) for width in (int(bits), min(8, int(bits) + 1)))
    return round(below + (bits - int(bits)) * (above - below))


def document(rows: list[dict[str, Any]], picture: str = "") -> str:
    """Return the page: a table for each network."""
    parts = ["# Bits for each layer", "", "`python -m benchmarks.quantization.pareto --out docs/mixed-precision`", ""]
    introduction = (
        "1,024 calibration images, a tenth of them held out; recipe `balanced`, activations in float, test images"
        " of the networks in [accuracy.md](accuracy.md). `auto` has the bytes of a uniform artifact, or a share of it,"
        " as its limit. yolov5n has the 128 images of coco/calib and is scored on the 128 of coco/val."
    )
    parts.append(paragraph(introduction))
    if picture:
        parts += ["", f"![Points of top-1 lost and relative error, by bytes]({picture}.svg)"]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = sorted((row for row in rows if row["network"] == name), key=lambda row: (row["bytes"], row["method"]))
        if name in DETECTORS:
            shown = table(pareto_detector.HEAD, [pareto_detector.cells(row) for row in own])
        else:
            shown = f"{own[0]['images']:,} test images.\n\n" + table(HEAD, [cells(row, own) for row in own])
        parts += ["", f"## {name}", "", shown]
        lost_by_parts = [pareto_detector.parts(row) for row in own if row["method"] == "uniform"]
        parts += [line for said in (saved(own), *map(paragraph, lost_by_parts)) if said for line in ("", said)]
    parts += ["", *map(paragraph, NOTES), ""]
    return "\n".join(parts)


HEAD = (
    "method",
    "bytes",
    "mean bits",
    "top-1 %",
    "drop",
    "against uniform W4",
    "agreement %",
    "relative error",
)
NOTES = (
    "- **against uniform W4**: difference in top-1 ± its paired standard error (same images, one right and one wrong).",
    "- **agreement**: test images with the same class as in full precision. **relative error**: |q - fp|² / |fp|² of"
    " the logits; it is what `auto` minimizes, on held-out calibration images, and has far less noise than top-1."
    " Of a detector: errors of scores and of boxes' overlaps as a share of the scores' energy.",
    "- **drop** of a detector: ± its standard error by a jackknife over sixteenths of the 128 images. **by own boxes**:"
    " the boxes that full precision serves are the labels. Every change counts, also where both networks are wrong, so"
    " the drop is larger, and its noise smaller in comparison.",
)


def cells(row: dict[str, Any], others: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the cells of a row."""
    uniform = next((each for each in others if (each["method"], each["bits"]) == ("uniform", 4.0)), None)
    versus = "" if uniform in (None, row) else paired(row, uniform)
    return (
        *pareto_detector.widths_and_bytes(row),
        f"{row['top1']:.2f}",
        f"{lost(row):+.2f}",
        versus,
        f"{row['agreement']:.2f}",
        f"{row['relative_error']:.2e}",
    )


def saved(rows: list[dict[str, Any]]) -> str:
    """Return how many bytes fewer auto takes for what uniform W4 loses; empty if that was not measured.

    Args:
        rows: Rows of one network.
    """
    uniform = next((row for row in rows if (row["method"], row["bits"]) == ("uniform", 4.0)), None)
    auto = sorted((row for row in rows if row["method"] == "auto"), key=lambda row: row["bytes"])
    if uniform is None or not auto:
        return ""
    parts = []
    if holding := [row["bytes"] for row in auto if lost(row) <= lost(uniform)]:
        parts.append(f"{100 * (1 - min(holding) / uniform['bytes']):.0f} % by what is lost")
    if (same := bytes_at(auto, uniform["relative_error"])) is not None:
        parts.append(f"{100 * (1 - same / uniform['bytes']):.0f} % by the relative error, interpolated")
    return f"Fewer bytes than uniform W4: {', '.join(parts)}." if parts else ""


def bytes_at(rows: list[dict[str, Any]], error: float) -> float | None:
    """Return the bytes at a relative error, by interpolating its logarithm; None if no two rows are around it.

    Args:
        rows: Rows of one method, by bytes.
        error: The error.
    """
    for small, large in itertools.pairwise(rows):
        if small["relative_error"] >= error >= large["relative_error"] > 0:
            whole = math.log(small["relative_error"] / large["relative_error"])
            share = math.log(small["relative_error"] / error) / whole if whole else 0.0
            return float(small["bytes"] + share * (large["bytes"] - small["bytes"]))
    return None


def lost(row: dict[str, Any]) -> float:
    """Return the points of top-1 or mAP that are lost."""
    return float(row["drop"] if "drop" in row else row["reference_top1"] - row["top1"])


def paired(row: dict[str, Any], other: dict[str, Any] | None) -> str:
    """Return the difference in top-1 with its paired standard error."""
    assert other is not None  # noqa: S101 - there is one
    ours, theirs = (unpacked(each["hits"], each["images"]).astype(int) for each in (row, other))
    differences = ours - theirs
    error = 100 * float(differences.std()) / len(differences) ** 0.5
    return f"{100 * float(differences.mean()):+.2f} ± {error:.2f}"


def draw(rows: list[dict[str, Any]]) -> str:
    """Return the picture as SVG text: the relative error against bytes, both logarithmic, a panel for each network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    wide = WIDTH + LEFT + 30
    height = (TOP + HEIGHT + 40) * max(len(names), 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}">',
        "<title>Relative error of the logits against bytes of the weights</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{wide}" height="{height}" rx="6"/>',
    ]
    for index, name in enumerate(names):
        parts += _panel(name, [row for row in rows if row["network"] == name], index * (TOP + HEIGHT + 40) + TOP)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(name: str, rows: list[dict[str, Any]], top: float) -> list[str]:
    sizes, errors = [row["bytes"] for row in rows], [row["relative_error"] for row in rows]

    def place(row: dict[str, Any]) -> tuple[float, float]:
        across = (row["bytes"] - min(sizes)) / max(max(sizes) - min(sizes), 1)
        up = torch.tensor([row["relative_error"], min(errors), max(errors)]).log()
        share = float((up[0] - up[1]) / max(float(up[2] - up[1]), 1e-9))
        return LEFT + 12 + across * (WIDTH - 24), top + HEIGHT - 12 - share * (HEIGHT - 24)

    parts = [
        f'<text class="title" x="{LEFT}" y="{top - 28}">{name}: error of the logits by bytes of the weights</text>'
    ]
    parts.append(f'<rect class="grid" fill="none" x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}"/>')
    for order, (method, color) in enumerate(COLORS.items()):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["bytes"])
        points = [place(row) for row in own]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{line}"/>')
        parts += [f'<circle fill="{color}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>' for x, y in points]
        parts.append(f'<circle fill="{color}" cx="{LEFT + 6 + 90 * order}" cy="{top - 12}" r="3.6"/>')
        parts.append(f'<text x="{LEFT + 16 + 90 * order}" y="{top - 8}">{method}</text>')
    for row in rows:
        if row["method"] == "uniform":
            x, y = place(row)
            label = f"W{row['bits']:g} {lost(row):+.2f}"
            parts.append(f'<text x="{min(x + 6, LEFT + WIDTH - 52):.1f}" y="{y - 6:.1f}">{label}</text>')
    parts.append(f'<text x="{LEFT}" y="{top + HEIGHT + 18}">{min(sizes):,} bytes</text>')
    parts.append(f'<text text-anchor="end" x="{LEFT + WIDTH}" y="{top + HEIGHT + 18}">{max(sizes):,}</text>')
    for value, y in ((max(errors), top + 16), (min(errors), top + HEIGHT - 8)):
        parts.append(f'<text text-anchor="end" x="{LEFT - 4}" y="{y}">{value:.1e}</text>')
    return parts


if __name__ == "__main__":
    main()
