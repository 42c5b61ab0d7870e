"""Facts of an update as names and values, which the page and the terminal report render.

Pure. Every key of the data may be missing, because an older daemon may have written it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from service.units import format_bytes, format_seconds

JSON = Mapping[str, Any]

_SHOWN_DIGITS = 12  # of a digest, as in the metrics

# Key in the report -> displayed name. The top-5 accuracy of a classifier appears in report.json only.
NAMES: Mapping[str, str] = {"top1": "top-1", "map50": "mAP50", "map50_95": "mAP50-95"}


def facts(data: JSON) -> list[tuple[str, str]]:
    """List the name and value of each known fact of an update; unknown facts are left out.

    Args:
        data: Data of the update, see `service.reporting.data.gather`.
    """
    update: JSON = data["update"]
    report, manifest = data.get("report") or {}, data.get("manifest") or {}
    totals: JSON = report.get("totals") or update.get("report") or {}
    settings: JSON = manifest.get("quantization") or {}
    architecture: JSON = manifest.get("architecture") or {}
    calibration: JSON = manifest.get("calibration") or {}
    found = [
        ("Generation", update.get("generation")),
        ("Architecture", architecture.get("name")),
        ("Weights", _weights(totals)),
        ("Bits", totals.get("bits") or settings.get("bits")),
        ("Method", settings.get("method")),
        *((name.capitalize() if name.islower() else name, value) for name, value in figures(totals)),
        ("Calibration", f"{calibration['images']} images" if "images" in calibration else None),
        ("Checkpoint", format_bytes(update["file_bytes"])),
        ("Artifact", _artifact(totals)),
        ("Device", totals.get("device")),
        ("Peak memory of the worker", _peak(data, totals)),
        ("Time of all stages", format_seconds(sum(update["stages"].values())) if update["stages"] else None),
        ("Tries", update["attempt"] if update["attempt"] > 1 else None),
        ("SHA-256", f"{update['sha256'][:_SHOWN_DIGITS]}..." if update.get("sha256") else None),
    ]
    return [(name, str(value)) for name, value in found if value is not None]


def _weights(totals: JSON) -> str | None:
    """Return which of a file's weights were taken, and from where."""
    taken: JSON = totals.get("checkpoint") or {}
    if not taken:
        return None
    place = [f"{name} {taken[name]!r}" for name in ("key", "prefix") if taken.get(name)]
    left_out = [f"{len(taken['left_out'])} other tensors left out"] if taken.get("left_out") else []
    return ", ".join([str(taken.get("weights")), *place, *left_out])


def _artifact(totals: JSON) -> str | None:
    if "artifact_bytes" not in totals:
        return None
    return f"{format_bytes(totals['artifact_bytes'])}, {totals['compression']:.1f} times smaller"


def _peak(data: JSON, totals: JSON) -> str | None:
    course = data.get("course") or {}
    seen = max((used for _, used in course.get("memory") or []), default=None)
    peak = totals.get("peak_memory_bytes") or seen
    if peak is None:
        return None
    plan: JSON = (data.get("report") or {}).get("plan") or {}
    planned = f", {format_bytes(plan['peak_bytes'])} planned" if "peak_bytes" in plan else ""
    limit = f", {format_bytes(course['memory_max'])} allowed" if course.get("memory_max") else ""
    return f"{format_bytes(peak)}{planned}{limit}"


def figures(totals: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each measurement on the held-out images.

    Args:
        totals: "totals" of a report.
    """
    before, after = totals.get("fp32", {}), totals.get("quantized", {})
    for key, name in NAMES.items():
        if key in before and key in after:
            drop = before[key] - after[key]
            yield name, f"{after[key]:.2f} % (full precision {before[key]:.2f} %, drop {drop:+.2f})"
    if "agreement" in totals:
        images = f"{totals.get('held_out_images', '?')} held-out images"
        boxes = totals.get("boxes")
        what = f"of {images}" if boxes is None else f"of {_boxes(boxes)} in {images}"
        yield "agreement", f"{totals['agreement']:.2f} % {what}"


def _boxes(counts: Mapping[str, int]) -> str:
    return f"{counts.get('quantized', '?')} boxes (full precision {counts.get('fp32', '?')})"
