"""How the daemon counts and shows what takes more than one line; `service/metrics/metric_table.py` has the metrics."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from service.journal.states import STAGES
from service.metrics.metric_table import MetricTable
from service.outcomes import POSTPONED
from service.system.hardware import ROOT

DIGEST_LENGTH = 12  # hex digits of a digest in a label: enough to tell files apart, short enough to read
MAX_LAYERS = 256  # series of one model; a network of more is told by the layers that lose most
MAX_REASONS = 64  # distinct ones; a worker names its own, and it has read a file that nobody trusts
OTHER = "other"  # whatever is beyond a bound

UPDATE_STAGES = ("settle", "claim", "start", *STAGES, "write", "publish", "warm", "swap", "probation")
# What is there from the start, at zero: a counter that appears with its first event never seems to rise.
_DEVICE_AT_FAULT = ("calibration", "crash", "device", "generation_start", "internal", "memory", "state", "timeout")
_FILE_AT_FAULT = (
    *("architecture", "artifact", "checkpoint", "checksum", "gate", "non_finite", "too_large", "unsafe_checkpoint"),
    *("probation", "rollback"),  # it was in service before, and taken out of it
)
_USUAL_OUTCOMES = {
    "committed": ("", "unchanged", "probation"),
    "rejected": _FILE_AT_FAULT,
    "failed": (*_DEVICE_AT_FAULT, "gone", "interrupted"),
    "superseded": ("superseded",),
    "rolled_back": ("probation", "rollback"),
}
_USUAL_CODES = (200, 400, 429, 500, 503, 504)


class Metrics(MetricTable):
    """Every metric of the daemon; labels are filled in where the event happens. Its arguments are `MetricTable`'s."""

    def __init__(
        self, registry: CollectorRegistry, version: str = "", state_dir: Path | None = None, root: Path = ROOT
    ) -> None:
        super().__init__(registry, version, state_dir, root)
        self._reasons = {reason for reasons in _USUAL_OUTCOMES.values() for reason in reasons}

    def expect_model(self, model: str) -> None:
        """Have what counts events of a configured model there before the first one."""
        for result, reasons in _USUAL_OUTCOMES.items():
            for reason in reasons:
                self.updates.labels(model, result, reason)
        for reason in (*_DEVICE_AT_FAULT, *POSTPONED):
            self.updates_deferred.labels(model, reason)
        self.show_postponed(model, None)
        for code in _USUAL_CODES:
            self.requests.labels(model, str(code))
        for stage in UPDATE_STAGES:
            self.stage_duration.labels(model, stage)
        for policy in ("availability", "resource"):
            self.swaps.labels(model, policy)
        for counter in (self.generation_restarts, self.generation_failed_starts):
            counter.labels(model)
        for histogram in (self.update_duration, self.swap_duration, self.request_duration):
            histogram.labels(model)
        for gauge in (self.drops_held, self.model_probation):
            gauge.labels(model)

    def count_update(self, model: str, result: str, reason: str = "") -> None:
        """Count an update that ended.

        Args:
            model: Model name.
            result: Its state, in lower case.
            reason: The error code; "" if nothing went wrong.
        """
        self.updates.labels(model, result, self._bounded(reason)).inc()

    def count_deferral(self, model: str, reason: str) -> None:
        """Count that an update was put off, for what its error code says."""
        self.updates_deferred.labels(model, self._bounded(reason)).inc()

    def show_postponed(self, model: str, reason: str | None) -> None:
        """Say what the update of a model waits for; None if none waits."""
        for code in POSTPONED:
            self.updates_postponed.labels(model, code).set(code == reason)

    def count_request(self, model: str, code: int, seconds: float) -> None:
        """Count an answered request for inference.

        Args:
            model: Model name.
            code: HTTP status.
            seconds: What it took.
        """
        known = code in HTTPStatus._value2member_map_
        self.requests.labels(model, str(code) if known else OTHER).inc()
        self.request_duration.labels(model).observe(seconds)

    def show_model(self, model: str, generation: int, digest: str, bits: int, runtime: str) -> None:
        """Say what is live; the labels of the generation before vanish.

        Args:
            model: Model name.
            generation: Live generation.
            digest: sha256 of the source file, hex; shortened here.
            bits: Bits per weight code.
            runtime: What executes it.
        """
        self._forget(self.model_info, model)
        self.model_info.labels(model, str(generation), digest[:DIGEST_LENGTH], str(bits), runtime).set(1)

    def show_layers(self, model: str, losses: Iterable[tuple[str, float]]) -> None:
        """Relative loss of the layers of the live generation, at most `MAX_LAYERS`; those of the one before vanish."""
        self._forget(self.layer_relative_loss, model)
        for layer, loss in heapq.nlargest(MAX_LAYERS, losses, key=lambda pair: pair[1]):
            self.layer_relative_loss.labels(model, layer).set(loss)

    def note_observed(self, model: str, told: Mapping[str, Any]) -> None:
        """What a generation found in a request that it was to look at, see service.inference.observation."""
        if told["capture"] is not None:
            self.captured_images.labels(model, told["capture"]).inc()
        if not told["drift_images"]:
            return
        self.calibration_drift_images.labels(model).set(told["drift_images"])
        if told["drift"] is not None:
            self.calibration_drift.labels(model).set(told["drift"])
        else:  # too few were looked at; what the process before found is not true any more
            self._forget(self.calibration_drift, model)

    def forget_drift(self, model: str) -> None:
        """Drop what was found with other images, or with a generation that is not live any more."""
        for gauge in (self.calibration_drift, self.calibration_drift_images):
            self._forget(gauge, model)

    def forget_model(self, model: str) -> None:
        """Drop the gauges of a model that is no longer configured; counters stay, as history."""
        for metric in vars(self).values():
            if isinstance(metric, Gauge) and "model" in metric._labelnames:
                self._forget(metric, model)

    def _bounded(self, reason: str) -> str:
        if reason not in self._reasons and len(self._reasons) >= MAX_REASONS:
            return OTHER
        self._reasons.add(reason)
        return reason

    def _forget(self, gauge: Gauge, model: str) -> None:
        position = gauge._labelnames.index("model")
        for labels in list(gauge._metrics):
            if labels[position] == model:
                gauge.remove(*labels)
