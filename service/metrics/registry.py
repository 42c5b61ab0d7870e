"""All metrics of the daemon: names, help texts, labels and buckets, and what the daemon records in them.

docs/metrics.md explains each metric. Labels hold names of models, stages and outcomes only, never a process ID, a path
or a full digest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.journal.states import UPDATE_STAGES
from service.metrics.device import DeviceCollector
from service.outcomes import POSTPONED
from service.system.hardware import ROOT
from service.worker.sandbox import Part

DIGEST_LENGTH = 12  # hex digits of a digest in a label: enough to distinguish files, short enough to read
MAX_LAYERS = 256  # series of one model; of a larger network, the layers with the highest loss are exported
MAX_REASONS = 64  # distinct ones; a worker chooses its own, and it has read an untrusted file
OTHER = "other"  # label value of everything beyond a bound

# Series that exist from the start, at zero: increase() doesn't see a counter that appears with its first event.
_DEVICE_AT_FAULT = ("calibration", "crash", "device", "generation_start", "internal", "memory", "state", "timeout")
_FILE_AT_FAULT = (
    *(
        "architecture",
        "artifact",
        "checkpoint",
        "checksum",
        "downgrade",
        "gate",
        "no_checksum",
        "non_finite",
        "signature",
        "too_large",
        "truncated",
        "unsafe_checkpoint",
        "unsigned",
    ),
    *("probation", "rollback"),  # an earlier update went live with this file and was rolled back
)
_USUAL_OUTCOMES = {
    "committed": ("", "unchanged", "probation"),
    "rejected": _FILE_AT_FAULT,
    "failed": (*_DEVICE_AT_FAULT, "gone", "interrupted"),
    "superseded": ("superseded",),
    "cancelled": ("cancelled",),
    "rolled_back": ("damaged", "probation", "rollback", "unusable"),
}
# The keys of service.http.refusals.REASONS.
_REFUSALS = (
    *("connections", "idle", "descriptors", "slow_head", "large_head", "slow_body", "slow_reader", "body_memory"),
    *("host", "origin", "token"),
)
_USUAL_CODES = (200, 400, 429, 500, 503, 504)

_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_UPDATE_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_SWAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10)


class Metrics:
    """Every metric of the daemon, each under an attribute of its own.

    Args:
        registry: Registry that the metrics are registered in; a test brings its own.
        version: Version of edged.
        state_dir: Folder whose filesystem's free space is exported, or None to leave that out.
        root: Folder that holds /proc and /sys.
    """

    def __init__(
        self, registry: CollectorRegistry, version: str = "", state_dir: Path | None = None, root: Path = ROOT
    ) -> None:
        self.registry = registry
        self._request_series: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._reasons = {reason for reasons in _USUAL_OUTCOMES.values() for reason in reasons}
        registry.register(DeviceCollector(state_dir, root))
        self._declare_software(version)
        self._declare_updates()
        self._declare_models()
        self._declare_serving()

    def expect_model(self, model: str) -> None:
        """Create the series of a configured model that count events, at 0, before the first event."""
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
        for counter in (self.generation_restarts, self.generation_failed_starts, self.worker_held_back):
            counter.labels(model)
        for histogram in (self.update_duration, self.swap_duration, self.request_duration):
            histogram.labels(model)
        for gauge in (self.drops_held, self.model_probation, self.damaged_generations, self.last_recovery):
            gauge.labels(model)

    def count_update(self, model: str, result: str, reason: str = "") -> None:
        """Count a finished update.

        Args:
            model: Model name.
            result: Final state of the update, in lower case.
            reason: Error code, or "" if nothing went wrong.
        """
        self.updates.labels(model, result, self._bounded(reason)).inc()

    def count_deferral(self, model: str, reason: str) -> None:
        """Count the deferral of an update by the code of its cause."""
        self.updates_deferred.labels(model, self._bounded(reason)).inc()

    def show_postponed(self, model: str, reason: str | None) -> None:
        """Show why the update of a model is postponed; None if no update is."""
        for code in POSTPONED:
            self.updates_postponed.labels(model, code).set(code == reason)

    def count_request(self, model: str, code: int, seconds: float) -> None:
        """Count an inference request that was answered.

        Args:
            model: Model name.
            code: HTTP status of the response.
            seconds: Time from the arrival of the request to its response.
        """
        text = str(code) if code in HTTPStatus._value2member_map_ else OTHER
        requests, duration = self._request_series.get((model, text)) or self._find_request_series(model, text)
        requests.inc()
        duration.observe(seconds)

    def _find_request_series(self, model: str, code: str) -> tuple[Counter, Histogram]:
        """Return the series of requests with one code, and keep them: finding them takes longer than counting."""
        found = (self.requests.labels(model, code), self.request_duration.labels(model))
        return self._request_series.setdefault((model, code), found)

    def note_held_back(self, model: str, seconds: float) -> None:
        """Count the time for which the worker of a model was held back because requests arrived."""
        self.worker_held_back.labels(model).inc(seconds)

    def note_sandbox(self, parts: Iterable[Part]) -> None:
        """Show which parts of the sandbox of workers hold."""
        for part in parts:
            self.worker_sandbox.labels(part.name).set(part.lacking is None)

    def count_http_refusal(self, reason: str) -> None:
        """Count what the HTTP server refused, to stay within its bounds or to be safe."""
        self.http_refused.labels(reason).inc()

    def show_http(self, connections: Mapping[str, Callable[[], float]], body_bytes: Callable[[], float]) -> None:
        """Show the state of the HTTP server whenever the metrics are scraped.

        Args:
            connections: Returns the number of open connections, by listener.
            body_bytes: Returns the bytes that the bodies of requests take.
        """
        for listener, count in connections.items():
            self.http_connections.labels(listener).set_function(count)
        self.http_body_bytes.set_function(body_bytes)

    def show_model(self, model: str, generation: int, digest: str, bits: int | str, runtime: str) -> None:
        """Show the live generation; the labels of the previous generation disappear.

        Args:
            model: Model name.
            generation: Number of the live generation.
            digest: SHA-256 of the source file in hex; shortened here.
            bits: Bits per quantized weight; "auto" where each layer has its own.
            runtime: Runtime that executes the model.
        """
        self._forget(self.model_info, model)
        self.model_info.labels(model, str(generation), digest[:DIGEST_LENGTH], str(bits), runtime).set(1)

    def show_layers(self, model: str, losses: Iterable[tuple[str, float]]) -> None:
        """Show the relative loss of the live generation's layers, at most `MAX_LAYERS` of them.

        The layers of the previous generation disappear.
        """
        self._forget(self.layer_relative_loss, model)
        for layer, loss in heapq.nlargest(MAX_LAYERS, losses, key=lambda pair: pair[1]):
            self.layer_relative_loss.labels(model, layer).set(loss)

    def note_observed(self, model: str, observed: Mapping[str, Any]) -> None:
        """Record what a generation observed in a sampled request, see service.inference.observation."""
        if observed["capture"] is not None:
            self.captured_images.labels(model, observed["capture"]).inc()
        if not observed["drift_images"]:
            return
        self.calibration_drift_images.labels(model).set(observed["drift_images"])
        if observed["drift"] is not None:
            self.calibration_drift.labels(model).set(observed["drift"])
        else:  # too few images were sampled, and the value of the previous process is outdated
            self._forget(self.calibration_drift, model)

    def forget_drift(self, model: str) -> None:
        """Remove the drift of a model, because its images or its live generation have changed."""
        for gauge in (self.calibration_drift, self.calibration_drift_images):
            self._forget(gauge, model)

    def forget_model(self, model: str) -> None:
        """Remove the gauges of a model that is no longer configured; its counters stay as history."""
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

    def _declare_software(self, version: str) -> None:
        ProcessCollector(registry=self.registry)
        self.build_info = self._gauge("build_info", "Always 1; the version of edged.", "version")
        self.build_info.labels(version).set(1)
        self.config_reload_success = self._gauge(
            "config_reload_success", "1 if the config was valid when it was last read."
        )
        self.garbage_removed = self._counter("garbage_removed_bytes_total", "Bytes that `edged gc` deleted.")
        self.drop_unclaimed = self._gauge(
            "drop_unclaimed", "Files and folders in the drop folder that are not taken, or not yet.", "kind"
        )
        self.watch_up = self._gauge("watch_up", "1 while every drop folder exists and is watched.")
        self.watch_rebuilds = self._counter(
            "watch_rebuilds_total", "Watches recreated after their folder had vanished."
        )

    def _declare_updates(self) -> None:
        self.updates = self._counter("updates_total", "Finished updates by outcome.", "model", "result", "reason")
        self.update_duration = self._histogram(
            "update_duration_seconds", "Time from the detection of a file to its going live.", _UPDATE_BUCKETS, "model"
        )
        self.stage_duration = self._histogram(
            "update_stage_duration_seconds", "Time in each stage of an update.", _STAGE_BUCKETS, "model", "stage"
        )
        self.swap_duration = self._histogram(
            "swap_duration_seconds",
            "Time from the switch of traffic to the exit of the previous process.",
            _SWAP_BUCKETS,
            "model",
        )
        self.swaps = self._counter(
            "swaps_total", "Generations that went live, by the swap policy that was applied.", "model", "policy"
        )
        self.updates_deferred = self._counter(
            "updates_deferred_total", "Deferrals of updates by reason.", "model", "reason"
        )
        self.updates_postponed = self._gauge(
            "updates_postponed", "1 while an update is postponed for this reason.", "model", "reason"
        )
        self.queue_length = self._gauge("queue_length", "Updates that are queued or in progress.", "model")
        self.queue_oldest = self._gauge(
            "queue_oldest_timestamp_seconds",
            "Time since which the longest waiting update waits for its turn; 0 if none waits.",
            "model",
        )
        self.last_drop = self._gauge(
            "last_drop_timestamp_seconds", "Time at which a dropped file was last detected.", "model"
        )
        self.last_success = self._gauge(
            "last_success_timestamp_seconds", "Time at which an update last went live.", "model"
        )
        self.worker_memory = self._gauge("worker_memory_bytes", "Resident memory of the running worker.", "model")
        self.worker_sandbox = self._gauge(
            "worker_sandbox",
            "1 if this part of the sandbox of workers holds. part is privileges, files, network or processes.",
            "part",
        )
        self.worker_peak_memory = self._gauge(
            "worker_peak_memory_bytes", "Highest resident memory of the model's last worker.", "model"
        )
        self.worker_peak_device_memory = self._gauge(
            "worker_peak_device_memory_bytes",
            "Highest memory of the last worker on the device that it computes on.",
            "model",
        )
        self.worker_held_back = self._counter(
            "worker_held_back_seconds_total",
            "Time for which workers were kept off one core because requests arrived.",
            "model",
        )
        self.worker_memory_limit = self._gauge(
            "worker_memory_limit_bytes", "Resident memory above which a worker is killed; +Inf for no limit."
        )

    def _declare_models(self) -> None:
        self.model_pinned = self._gauge("model_pinned", "1 while the model is pinned to its live generation.", "model")
        self.model_paused = self._gauge("model_paused", "1 while no file is claimed from the drop folder.", "model")
        self.model_probation = self._gauge("model_probation", "1 while the live generation is on probation.", "model")
        self.drops_held = self._gauge("drops_held", "Dropped files that are parked until an operator acts.", "model")
        self.model_info = self._gauge(
            "model_info",
            "Always 1; the labels describe the live generation.",
            "model",
            "generation",
            "digest",
            "bits",
            "runtime",
        )
        self.model_agreement = self._gauge(
            "model_agreement_ratio",
            "Share of held-out images (detector: boxes) on which the model agrees with full precision.",
            "model",
        )
        self.model_accuracy = self._gauge(
            "model_accuracy_ratio", "Top-1 accuracy on labeled held-out images.", "model", "precision"
        )
        self.model_map = self._gauge(
            "model_map_ratio", "Mean average precision on labeled held-out images.", "model", "precision", "iou"
        )
        self.shadow_agreement = self._gauge(
            "model_shadow_agreement_ratio",
            "Share of live images (detector: boxes) on which the model agrees with the previous generation.",
            "model",
        )
        self.damaged_generations = self._gauge(
            "damaged_generations", "Generations that were found damaged and have not been deleted.", "model"
        )
        self.last_recovery = self._gauge(
            "last_recovery_timestamp_seconds",
            "Time at which another generation was put in service because the current one was damaged.",
            "model",
        )
        self.state_folder_up = self._gauge(
            "state_folder_up", "Whether the state folder is the one that the daemon has opened, and can be written."
        )
        self.journal_restored = self._gauge(
            "journal_last_restored_timestamp_seconds",
            "Time at which the journal was found damaged, and was restored from its second copy.",
        )
        self.artifact_bytes = self._gauge("artifact_bytes", "Size of the live artifact's weights.", "model")
        self.checkpoint_bytes = self._gauge(
            "checkpoint_bytes", "Size of the checkpoint that the live artifact was quantized from.", "model"
        )
        self.layer_relative_loss = self._gauge(
            "layer_relative_loss", "Squared error of a layer's output as a share of its energy.", "model", "layer"
        )

    def _declare_serving(self) -> None:
        self.http_refused = self._counter(
            "http_refused_total",
            "What the HTTP server refused or closed, to stay in bounds or to be safe.",
            "reason",
        )
        for reason in _REFUSALS:
            self.http_refused.labels(reason)
        self.http_connections = self._gauge("http_connections", "Open connections to the HTTP server.", "listener")
        self.http_body_bytes = self._gauge("http_body_bytes", "Memory reserved for the bodies of requests.")
        self.model_ready = self._gauge("model_ready", "1 while a generation serves the model.", "model")
        self.request_duration = self._histogram(
            "inference_request_duration_seconds",
            "Time from the arrival of a request to its response.",
            _REQUEST_BUCKETS,
            "model",
        )
        self.batch_size = self._histogram(
            "inference_batch_size",
            "Images in one forward pass of a model that batches requests.",
            _BATCH_BUCKETS,
            "model",
        )
        self.requests = self._counter("inference_requests_total", "Inference requests by HTTP status.", "model", "code")
        self.requests_in_flight = self._gauge(
            "inference_requests_in_flight", "Inference requests in progress or queued.", "model"
        )
        self.generation_memory = self._gauge(
            "generation_memory_bytes",
            "Resident memory of the process that serves the model, shared pages included.",
            "model",
        )
        self.generation_restarts = self._counter(
            "generation_restarts_total",
            "Serving processes that were restarted after an unexpected exit.",
            "model",
        )
        self.generation_failed_starts = self._counter(
            "generation_failed_starts_total", "Failed restarts of serving processes.", "model"
        )
        self.generation_start = self._gauge(
            "generation_start_seconds", "Time that the serving process took to start, load and warm up.", "model"
        )
        self.captured_images = self._counter(
            "captured_images_total", "Live requests that were sampled for capture, by result.", "model", "result"
        )
        self.calibration_drift = self._gauge(
            "calibration_drift", "Population stability index of live images relative to calibration images.", "model"
        )
        self.calibration_drift_images = self._gauge(
            "calibration_drift_images", "Live images from which the drift is computed.", "model"
        )

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"edged_{name}", help_text, labels, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"edged_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"edged_{name}", help_text, labels, buckets=buckets, registry=self.registry)
