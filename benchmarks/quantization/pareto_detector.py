"""Rows and tables of a detector for benchmarks.quantization.pareto: mAP against bytes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quantization import detection
from benchmarks.quantization.activations import jackknife
from benchmarks.quantization.networks import data_root
from edged.artifacts.weights import stored_bytes
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

HEAD = ("method", "bytes", "mean bits", "mAP50-95 %", "drop", "agreement %", "relative error", "seconds")


@dataclass(frozen=True)
class Outputs:
    """What a detector gives for the test images.

    Attributes:
        counted: Boxes that count for mAP, of each image.
        served: Boxes that are served, of each image.
        raw: Raw outputs of the first KEPT images.
    """

    counted: list[Detections]
    served: list[Detections]
    raw: Tensor


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

    def measure(self, method: str, bits: float, limit: int) -> dict[str, Any]:
        """Quantize once and return mAP, bytes and seconds.

        Args:
            method: "uniform" or "auto".
            bits: Bits of all layers; with "auto" only noted.
            limit: Most bytes with "auto".
        """
        start = time.perf_counter()
        uniform = method == "uniform"
        spec = recipe("balanced", bits=int(bits)) if uniform else recipe("balanced", bits=AUTO, size_limit=limit)
        done = self._compressor(spec)
        seconds = time.perf_counter() - start
        found, full = self._outputs(done.model), self._reference
        score, drop, error = jackknife(found.counted, full.counted, self.loaded.labels, self.loaded.test.sizes)
        widths = {key: weight.bits for key, weight in done.quantized.items()}
        return {
            "network": self._name,
            "method": method,
            "bits": bits,
            "bytes": stored_bytes(self.loaded.model.state_dict(), widths),
            "map50_95": score,
            "drop": drop,
            "drop_error": error,
            "agreement": agreement(full.served, found.served),
            "relative_error": detection_error(full.raw, found.raw) / _power(full.raw),
            "seconds": seconds,
            "widths": list(widths.values()),
        }

    def _outputs(self, model: nn.Module) -> Outputs:
        counted: list[Detections] = []
        served: list[Detections] = []
        kept = []
        test, plan = self.loaded.test, self.loaded.plan
        for part in torch.arange(len(test)).split(BATCH):
            raw = predict(model, test, part, BATCH)
            if int(part[-1]) < KEPT:
                kept.append(raw)
            counted += detections_of(raw, plan, test, part, EVALUATION)
            served += detections_of(raw, plan, test, part, DetectionSpec())
        return Outputs(counted, served, torch.cat(kept))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row, in the order of HEAD."""
    return (
        *widths_and_bytes(row),
        f"{row['map50_95']:.2f}",
        f"{row['drop']:+.2f} ± {row['drop_error']:.2f}",
        f"{row['agreement']:.2f}",
        f"{row['relative_error']:.2e}",
        f"{row['seconds']:.1f}",
    )


def widths_and_bytes(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the first cells of a row of any network: the method, the bytes and the mean bits."""
    name = f"W{row['bits']:g}" if row["method"] == "uniform" else f"auto, {min(row['widths'])} to {max(row['widths'])}"
    return name, f"{row['bytes']:,}", f"{row['bits']:g}"


def _power(raw: Tensor) -> float:
    """Return the energy of a detector's scores, objectness times class probability."""
    return sum(
        float((each[:, 5:].sigmoid() * each[:, 4:5].sigmoid()).square().sum(dtype=torch.float64)) for each in raw
    )
