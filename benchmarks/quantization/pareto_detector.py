"""Rows and tables of a detector for benchmarks.quantization.pareto: mAP against bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quantization import detection
from benchmarks.quantization.activations import jackknife
from benchmarks.quantization.networks import data_root
from edged.artifacts.weights import stored_bytes
from edged.calibration.yolo_labels import Boxes
from edged.engine.memory_plan import Resources
from edged.evaluation.classification import predict
from edged.evaluation.detection import agreement, detections_of
from edged.evaluation.fidelity import detection_error
from edged.models.detections import Detections
from edged.pipeline.evaluation import Labels
from edged.pipeline.mixed_precision import Compressor, HeldOut
from edged.progress import SilentListener
from edged.spec import AUTO, EVALUATION, DetectionSpec, recipe

DETECTORS = {"yolov5n": "yolov5n.pt"}
BATCH = 8
KEPT = 32  # images whose raw outputs are kept for comparing: they take 9 MB each
# Parts of the raw outputs that are quantized alone, the others being those of full precision.
PARTS_OF_OUTPUTS = {"boxes": slice(0, 4), "scores": slice(4, None)}

HEAD = (
    "method",
    "bytes",
    "mean bits",
    "mAP50-95 %",
    "drop",
    "drop by own boxes",
    "agreement %",
    "relative error",
    "CPU seconds",
)


@dataclass(frozen=True)
class Outputs:
    """What a detector gives for the test images.

    Attributes:
        counted: Boxes that count for mAP, of each image.
        served: Boxes that are served, of each image.
        raw: Raw outputs of the first KEPT images.
        parts: Boxes that count with only a part of the outputs quantized, by its name in PARTS_OF_OUTPUTS.
    """

    counted: list[Detections]
    served: list[Detections]
    raw: Tensor
    parts: dict[str, list[Detections]]


class Detector:
    """A detector with its images, and what quantizes it.

    Args:
        name: Key of DETECTORS.
        cache: Folder for decoded images.
    """

    def __init__(self, name: str, cache: Path) -> None:
        self._name = name
        self.loaded = detection.load(data_root(), DETECTORS[name], cache)
        held_out = HeldOut(self.loaded.architecture, Labels(), DetectionSpec())
        self._compressor = Compressor(
            self.loaded.model, self.loaded.calibration, held_out, Resources(), SilentListener()
        )
        self._reference = self._outputs(self.loaded.model)
        self._own = own_boxes(self._reference.served, self.loaded.test.sizes)

    def measure(self, method: str, bits: float, limit: int) -> dict[str, Any]:
        """Quantize once and return mAP, bytes and seconds.

        Args:
            method: "uniform" or "auto".
            bits: Bits of all layers; with "auto" only noted.
            limit: Most bytes with "auto".
        """
        start = time.process_time()
        uniform = method == "uniform"
        spec = recipe("balanced", bits=int(bits)) if uniform else recipe("balanced", bits=AUTO, size_limit=limit)
        done = self._compressor(spec)
        seconds = time.process_time() - start
        found, full = self._outputs(done.model, parts=uniform), self._reference
        plan, side = self.loaded.plan, self.loaded.test.input.size
        widths = {key: weight.bits for key, weight in done.quantized.items()}
        return {
            "network": self._name,
            "method": method,
            "bits": bits,
            "bytes": stored_bytes(self.loaded.model.state_dict(), widths),
            **self._drops(found.counted),
            "parts": {part: self._drops(counted) for part, counted in found.parts.items()},
            "agreement": agreement(full.served, found.served),
            "relative_error": detection_error(full.raw, found.raw, plan, side) / _power(full.raw),
            "seconds": seconds,
            "widths": list(widths.values()),
        }

    def _drops(self, counted: Sequence[Detections]) -> dict[str, float]:
        """Return mAP and its drop by the labels and by the boxes of full precision, with standard errors."""
        sizes, full = self.loaded.test.sizes, self._reference.counted
        score, drop, error = jackknife(counted, full, self.loaded.labels, sizes)
        _, own, own_error = jackknife(counted, full, self._own, sizes)
        return {"map50_95": score, "drop": drop, "drop_error": error, "own_drop": own, "own_drop_error": own_error}

    def _outputs(self, model: nn.Module, parts: bool = False) -> Outputs:
        counted: list[Detections] = []
        served: list[Detections] = []
        alone: dict[str, list[Detections]] = {part: [] for part in (PARTS_OF_OUTPUTS if parts else ())}
        kept = []
        test, plan = self.loaded.test, self.loaded.plan
        for some in torch.arange(len(test)).split(BATCH):
            raw = predict(model, test, some, BATCH)
            if int(some[-1]) < KEPT:
                kept.append(raw)
            counted += detections_of(raw, plan, test, some, EVALUATION)
            served += detections_of(raw, plan, test, some, DetectionSpec())
            full = predict(self.loaded.model, test, some, BATCH) if parts else raw
            for part, found in alone.items():
                mixed = full.clone()
                mixed[..., PARTS_OF_OUTPUTS[part]] = raw[..., PARTS_OF_OUTPUTS[part]]
                found += detections_of(mixed, plan, test, some, EVALUATION)
        return Outputs(counted, served, torch.cat(kept), alone)


def parts(row: dict[str, Any]) -> str:
    """Return what each part of the outputs loses alone; empty if that was not measured.

    Args:
        row: A row of a detector.
    """
    if not row.get("parts"):
        return ""
    each = [
        f"{name} lose {part['drop']:.2f} ± {part['drop_error']:.2f} points ({part['own_drop']:.1f} ±"
        f" {part['own_drop_error']:.1f} by own boxes)"
        for name, part in row["parts"].items()
    ]
    return f"With only a part of the outputs quantized at {widths_and_bytes(row)[0]}, {' and '.join(each)}."


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row, in the order of HEAD."""
    return (
        *widths_and_bytes(row),
        f"{row['map50_95']:.2f}",
        f"{row['drop']:+.2f} ± {row['drop_error']:.2f}",
        f"{row['own_drop']:.2f} ± {row['own_drop_error']:.2f}",
        f"{row['agreement']:.2f}",
        f"{row['relative_error']:.2e}",
        f"{row['seconds']:.1f}",
    )


def widths_and_bytes(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the first cells of a row of any network: the method, the bytes and the mean bits."""
    name = f"W{row['bits']:g}" if row["method"] == "uniform" else f"auto, {min(row['widths'])} to {max(row['widths'])}"
    return name, f"{row['bytes']:,}", f"{row['bits']:g}"


def own_boxes(served: Sequence[Detections], sizes: Sequence[tuple[int, int]]) -> list[Boxes | None]:
    """Return the boxes that a detector serves, as labels.

    Args:
        served: Detections of each image, boxes in pixels.
        sizes: Width and height of each image, in pixels.
    """
    return [
        Boxes(torch.from_numpy(found.boxes).float() / torch.tensor(size * 2), torch.from_numpy(found.classes))
        for found, size in zip(served, sizes, strict=True)
    ]


def _power(raw: Tensor) -> float:
    """Return the energy of a detector's scores, objectness times class probability."""
    return sum(
        float((each[:, 5:].sigmoid() * each[:, 4:5].sigmoid()).square().sum(dtype=torch.float64)) for each in raw
    )
