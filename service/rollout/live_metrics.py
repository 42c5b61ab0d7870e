"""Metrics that describe the live generation of a model."""

from __future__ import annotations

import logging

from edged.errors import ArtifactError
from edged.json_document import MALFORMED
from service.metrics.registry import Metrics
from service.serving.generation import Generation
from service.storage.generations import GenerationRepository

log = logging.getLogger(__name__)

_OVERLAPS = {"map50": "0.5", "map50_95": "0.5:0.95"}


async def show_live(metrics: Metrics, generations: GenerationRepository, live: Generation) -> None:
    """Export the values in the manifest and the report of a live generation. A failure is only logged."""
    model, number = live.model, live.number
    metrics.forget_drift(model)  # of the previous generation
    try:
        manifest, report = await generations.read(model, number)
        quantization, source = manifest["quantization"], manifest["source"]
        metrics.show_model(model, number, source["sha256"], quantization["bits"], live.engine)
        totals = report["totals"]
        metrics.show_layers(model, [(layer["name"], layer["relative_loss"]) for layer in report["layers"]])
        metrics.artifact_bytes.labels(model).set(totals["artifact_bytes"])
        metrics.checkpoint_bytes.labels(model).set(totals["checkpoint_bytes"])
        metrics.model_agreement.labels(model).set(totals["agreement"] / 100)
        for precision in ("fp32", "quantized"):
            measured = totals.get(precision, {})
            if "top1" in measured:
                metrics.model_accuracy.labels(model, precision).set(measured["top1"] / 100)
            for key, overlap in _OVERLAPS.items():
                if key in measured:
                    metrics.model_map.labels(model, precision, overlap).set(measured[key] / 100)
    except (ArtifactError, OSError, *MALFORMED) as error:
        log.warning("model %s generation %d: cannot export its values: %r", model, number, error)
