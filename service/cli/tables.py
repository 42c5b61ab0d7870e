"""Render the results of the commands that compute, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edged.calibration.folder import passed_over
from edged.spec import InputSpec
from service.reporting.bits import chosen_bits, tries
from service.reporting.candidates import candidates, kept_in_float, served_by
from service.reporting.facts import NAMES, bits_text, figures, kernels, levels, logits, reading
from service.units import format_bytes, format_seconds

_WORST_LAYERS = 5
_LISTED = 10


def quantization_table(result: Mapping[str, Any]) -> str:
    """Return the result of `edged quantize`."""
    totals = result["totals"]
    rows = [("artifact", result["out"]), ("bits", bits_text(totals) or "?")]
    if (spaced := levels(totals)) is not None:
        rows.append(("levels", spaced))
    if (read := reading(totals)) is not None:
        rows.append(("reading", read))
    rows += figures(totals)
    if (served := served_by(totals)) is not None:
        rows.append(("served by", served))
    if layers := kept_in_float(totals):
        rows.append(("layers in float", ", ".join(layers)))
    if (slower := kernels(totals)) is not None:
        rows.append(("integer kernels", slower))
    if (changed := logits(totals)) is not None:
        rows.append(("logits", changed))
    if listed := candidates(totals):
        rows.append(("candidates to serve", ""))
        rows += [(f"  {each.name}", each.description) for each in listed]
    rows += [
        ("size", f"{format_bytes(totals['artifact_bytes'])}, {totals['compression']:.1f} times smaller"),
        (
            "peak memory",
            f"{format_bytes(totals['peak_device_memory_bytes'])} on {totals['device']}"
            f" (planned {format_bytes(result['plan']['peak_bytes'])})",
        ),
    ]
    rows += [(f"  {stage}", format_seconds(seconds)) for stage, seconds in totals["stage_seconds"].items()]
    worst = sorted(result["layers"], key=lambda layer: -layer["relative_loss"])[:_WORST_LAYERS]
    rows.append(("largest relative loss", ""))
    rows += [(f"  {layer['name']}", f"{layer['relative_loss']:.2e} at {layer['bits']} bits") for layer in worst]
    if chosen := chosen_bits(result):
        rows.append(("bits of the layers", ""))
        rows += [(f"  {layer.name}", layer.description) for layer in chosen]
    if (tried := tries(result)) is not None:
        rows.append(("tried", tried))
    rows += [("calibration", note) for note in result["image_notes"]]
    return two_columns([*rows, *_skipped(result["skipped_images"])])


def export_table(result: Mapping[str, Any]) -> str:
    """Return the result of `edged export`."""
    shape = ", ".join(map(str, result["output_shape"]))
    numbers = "integers" if result["integer"] else "float: quantize with --activation-bits 8 for integers"
    return two_columns(
        [
            ("model", result["out"]),
            ("size", format_bytes(result["bytes"])),
            ("computes on", numbers),
            ("output", f"{result['output']} [{shape}] for each image"),
        ]
    )


def plan_line(plan: Mapping[str, Any]) -> str:
    """Return what quantizing will need, in a line."""
    first, last = (min(plan["batch_sizes"][i], plan["images"]) for i in (0, -1))
    return (
        f"plan: {plan['images']} images in batches of {first} to {last},"
        f" {format_bytes(plan['activation_memory'])} of activations in memory,"
        f" {format_bytes(plan['peak_bytes'])} in all"
    )


def evaluation_table(result: Mapping[str, Any]) -> str:
    """Return the result of `edged evaluate`."""
    measured = [(NAMES.get(key, "top-5"), f"{result[key]:.2f} %") for key in (*NAMES, "top5") if key in result]
    boxes = f", {result['boxes']} labelled boxes" if "boxes" in result else ""
    split = f", {result['split']} of the data.yaml" if result["split"] else ""
    return two_columns(
        [
            ("architecture", f"{result['architecture']}, {result['classes']} classes"),
            *([("reading", read)] if (read := reading(result)) is not None else []),
            ("computed by", f"{result['engine']}, {result['precision']}"),
            *measured,
            ("images", f"{result['images']} ({result['skipped']} skipped){boxes}{split}"),
            ("prepared", f"{InputSpec.from_dict(result['input']).describe()}; from {result['input_from']}"),
            ("comparable", f"with results of the key {result['comparison_key']}"),
            *(("warning", text) for text in result["warnings"]),
            *_skipped(result["skipped_images"]),
        ]
    )


def calibration_table(result: Mapping[str, Any]) -> str:
    """Return the result of `edged calib DIR`."""
    split = f"; {result['split']} of the data.yaml" if result["split"] else ""
    line = passed_over(result["passed_over"])
    return two_columns(
        [
            ("folder", result["folder"]),
            (
                "images",
                f"{result['images']}: {result['calibration']} calibrate, {result['held_out']} are held out{split}",
            ),
            ("classes", ", ".join(result["classes"]) or "none: the images are in no class folders"),
            ("digest", result["digest"][:16]),
            ("cache", result["cache"]),
            *([("other types", line)] if line else []),
            *_skipped(result["skipped"]),
        ]
    )


def _skipped(entries: list[dict[str, str]]) -> Iterable[tuple[str, str]]:
    if entries:
        yield "skipped", f"{len(entries)} files"
    for entry in entries[:_LISTED]:
        yield f"  {entry['path']}", entry["reason"]
    if len(entries) > _LISTED:
        yield "  ...", f"and {len(entries) - _LISTED} more; --json lists all"


def two_columns(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and values, one pair a line."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)
