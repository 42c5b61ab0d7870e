"""The figures of an evaluation in words. Pure; every key may be missing, as an older daemon may have written them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Key in the report -> what people call it. Of a classifier's top-5 only the report tells.
NAMES: Mapping[str, str] = {"top1": "top-1", "map50": "mAP50", "map50_95": "mAP50-95"}


def figures(totals: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of what was measured on the held-out images.

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
