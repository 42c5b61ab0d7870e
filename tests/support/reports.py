"""What a report is made of, without any work done."""

from __future__ import annotations

from typing import Any

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


def data_of(text: str = "plain", **changes: Any) -> dict[str, Any]:
    """Return data as `service.reporting.data.gather` does, with `text` in place of every external name."""
    update = {
        "id": 7,
        "model": "m",
        "state": "COMMITTED",
        "file_name": text,
        "file_bytes": 1 << 20,
        "sha256": "ab" * 32,
        "generation": 3,
        "attempt": 1,
        "code": None,
        "reason": None,
        "dropped_at": "2026-01-01T00:00:00.000Z",
        "updated_at": "2026-01-01T00:00:09.000Z",
        "stages": {"settle": 1.0, "quantize": 4.0},
        "report": {},
        "events": [{"at": "2026-01-01T00:00:00.000Z", "state": "DROPPED", "detail": {"reason": text}}],
    }
    layer = {"name": text, "kind": "Conv2d", "rows": 8, "columns": 27, "bits": 4, "relative_loss": 0.002,
             "order": "sensitivity", "images": 64}  # fmt: skip
    named = {"class": 2, "name": text, "probability": 0.75}
    return {
        "update": update,
        "timeline": [
            {"stage": "settle", "start_s": 0.0, "seconds": 1.0},
            {"stage": "quantize", "start_s": 3.0, "seconds": 4.0},
        ],
        "report": {
            "totals": {"agreement": 95.0, "held_out_images": 20, "bits": 4, "artifact_bytes": 1000, "compression": 6.5,
                       "device": text, "peak_memory_bytes": 300 << 20, "candidates": candidates(text),
                       "serve": {"engine": "onnxruntime", "precision": "integer"}},
            "layers": [layer, {**layer, "name": "fc", "bits": 8, "relative_loss": 0.001}],
            "plan": {"peak_bytes": 310 << 20},
        },
        "manifest": {
            "architecture": {"name": text},
            "quantization": {"method": "fastobq", "bits": 4},
            "calibration": {"images": 64},
        },
        "predictions": {
            "task": "classification",
            "images": [
                {"file": text, "picture": PICTURE, "width": 8, "height": 8, "truth": named, "fp32": named,
                 "quantized": {**named, "class": 1, "name": None}},
            ],
        },
        "course": {"update": 7, "started_at": 1767225601.0, "memory": [[0.2, 100 << 20], [5.0, 300 << 20]],
                   "memory_max": 1 << 30},
        "path": "/state/models/m/gen/3/report.html",
        **changes,
    }  # fmt: skip


def candidates(text: str = "plain") -> list[dict[str, Any]]:
    """Return the candidates of a report: the first serves with a layer in float, the second is refused."""
    first = {"engine": "onnxruntime", "precision": "integer", "in_float": [text], "ms": 4.526, "agreement": 95.0,
             "accuracy": 86.25, "drop": 0.75, "memory_bytes": 12 << 20, "chosen": True, "refused": None}  # fmt: skip
    nothing = dict.fromkeys(("ms", "agreement", "accuracy", "drop", "memory_bytes"))
    return [
        first,
        {**nothing, "engine": "torch", "precision": "float", "in_float": [], "chosen": False, "refused": text},
    ]


def detections(text: str = "plain") -> dict[str, Any]:
    """Return predictions of a detector in one image of 200 by 100 pixels."""
    box = {"box": [20.0, 10.0, 120.0, 60.0], "class": 0, "name": text, "score": 0.9}
    image = {"file": text, "picture": PICTURE, "width": 200, "height": 100, "fp32": [box, {**box, "score": 0.4}],
             "quantized": [box]}  # fmt: skip
    return {"task": "detection", "images": [image]}
