"""All metrics of the daemon: names, help texts, labels and buckets. docs/metrics.md explains each.

Labels hold names of models, stages and outcomes only: never a process id, a path or a full digest.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.metrics.device import DeviceCollector
from service.system.hardware import ROOT

_STAGE_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_UPDATE_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_SWAP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10)


class MetricTable:
    """Every metric under its attribute.

    Args:
        registry: Where they are registered; a test brings its own.
        version: Of edged.
        state_dir: Its filesystem's free space is exported; None to leave that out.
        root: Where /proc and /sys are.
    """

    def __init__(
        self, registry: CollectorRegistry, version: str = "", state_dir: Path | None = None, root: Path = ROOT
    ) -> None:
        self.registry = registry
        registry.register(DeviceCollector(state_dir, root))
        self._describe_software(version)
        self._describe_updates()
        self._describe_models()
        self._describe_serving()

    def _describe_software(self, version: str) -> None:
        ProcessCollector(registry=self.registry)
        self.build_info = self._gauge("build_info", "Always 1; the version of edged.", "version")
        self.build_info.labels(version).set(1)
        self.config_reload_success = self._gauge(
            "config_reload_success", "1 if the config was valid when it was last read."
        )
        self.garbage_removed = self._counter("garbage_removed_bytes_total", "What `edged gc` removed.")
        self.watch_up = self._gauge("watch_up", "1 while every drop folder exists and is watched.")
        self.watch_rebuilds = self._counter(
            "watch_rebuilds_total", "Watches set up anew after their folder had vanished."
        )

    def _describe_updates(self) -> None:
        self.updates = self._counter("updates_total", "Updates that ended, by outcome.", "model", "result", "reason")
        self.update_duration = self._histogram(
            "update_duration_seconds", "From the first sight of a file to its traffic.", _UPDATE_BUCKETS, "model"
        )
        self.stage_duration = self._histogram(
            "update_stage_duration_seconds", "Time in each stage of an update.", _STAGE_BUCKETS, "model", "stage"
        )
        self.swap_duration = self._histogram(
            "swap_duration_seconds",
            "From the switch of the traffic to the end of the old process.",
            _SWAP_BUCKETS,
            "model",
        )
        self.swaps = self._counter(
            "swaps_total", "Generations that got the traffic, by the policy that was applied.", "model", "policy"
        )
        self.updates_deferred = self._counter(
            "updates_deferred_total", "How often updates were put off, by reason.", "model", "reason"
        )
        self.updates_postponed = self._gauge(
            "updates_postponed", "1 while an update waits for a better time, by reason.", "model", "reason"
        )
        self.queue_length = self._gauge("queue_length", "Updates that wait or are worked on.", "model")
        self.last_drop = self._gauge("last_drop_timestamp_seconds", "When a dropped file was last found.", "model")
        self.last_success = self._gauge("last_success_timestamp_seconds", "When an update last went live.", "model")
        self.worker_memory = self._gauge("worker_memory_bytes", "Resident memory of the running worker.", "model")
        self.worker_peak_memory = self._gauge(
            "worker_peak_memory_bytes", "Highest resident memory of the model's last worker.", "model"
        )
        self.worker_peak_device_memory = self._gauge(
            "worker_peak_device_memory_bytes", "Most memory that the last worker used on what it computes on.", "model"
        )
        self.worker_memory_limit = self._gauge(
            "worker_memory_limit_bytes", "Resident memory beyond which a worker is ended; +Inf for no limit."
        )

    def _describe_models(self) -> None:
        self.model_pinned = self._gauge("model_pinned", "1 while no other generation may go live.", "model")
        self.model_paused = self._gauge("model_paused", "1 while nothing is taken out of the drop folder.", "model")
        self.model_probation = self._gauge("model_probation", "1 while the live generation is on probation.", "model")
        self.drops_held = self._gauge("drops_held", "Dropped files that wait for an operator.", "model")
        self.model_info = self._gauge(
            "model_info", "Always 1; what is live.", "model", "generation", "digest", "bits", "runtime"
        )
        self.model_agreement = self._gauge(
            "model_agreement_ratio",
            "Held-out images (detector: boxes) on which it agrees with full precision.",
            "model",
        )
        self.model_accuracy = self._gauge(
            "model_accuracy_ratio", "Top-1 accuracy on labelled held-out images.", "model", "precision"
        )
        self.model_map = self._gauge(
            "model_map_ratio", "Mean average precision on labelled held-out images.", "model", "precision", "iou"
        )
        self.shadow_agreement = self._gauge(
            "model_shadow_agreement_ratio",
            "Live requests' images (detector: boxes) on which it agrees with the generation before.",
            "model",
        )
        self.artifact_bytes = self._gauge("artifact_bytes", "Size of the live artifact's weights.", "model")
        self.checkpoint_bytes = self._gauge(
            "checkpoint_bytes", "Size of the checkpoint that the live artifact was made from.", "model"
        )
        self.layer_relative_loss = self._gauge(
            "layer_relative_loss", "Squared error of a layer's output as a share of its energy.", "model", "layer"
        )

    def _describe_serving(self) -> None:
        self.model_ready = self._gauge("model_ready", "1 while a generation answers for the model.", "model")
        self.request_duration = self._histogram(
            "inference_request_duration_seconds",
            "From the arrival of a request to its response.",
            _REQUEST_BUCKETS,
            "model",
        )
        self.batch_size = self._histogram(
            "inference_batch_size", "Images in one forward pass, of models that batch.", _BATCH_BUCKETS, "model"
        )
        self.requests = self._counter("inference_requests_total", "Requests by HTTP status.", "model", "code")
        self.requests_in_flight = self._gauge(
            "inference_requests_in_flight", "Requests not answered yet, waiting ones included.", "model"
        )
        self.generation_memory = self._gauge(
            "generation_memory_bytes",
            "Resident memory of the process that serves the model, shared pages included.",
            "model",
        )
        self.generation_restarts = self._counter(
            "generation_restarts_total",
            "Serving processes started again because they had ended by themselves.",
            "model",
        )
        self.generation_failed_starts = self._counter(
            "generation_failed_starts_total", "Serving processes that had ended and did not come up again.", "model"
        )
        self.generation_start = self._gauge(
            "generation_start_seconds", "How long the process that serves took to start, load and warm up.", "model"
        )
        self.captured_images = self._counter(
            "captured_images_total", "Live requests that were chosen to be kept, by result.", "model", "result"
        )
        self.calibration_drift = self._gauge(
            "calibration_drift", "Population stability index of live images against calibration images.", "model"
        )
        self.calibration_drift_images = self._gauge(
            "calibration_drift_images", "Live images that the drift is computed from.", "model"
        )

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"edged_{name}", help_text, labels, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"edged_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"edged_{name}", help_text, labels, buckets=buckets, registry=self.registry)
