"""The commands for the calibration images of the models of a config file: `edged calib add|list|verify|stats|purge`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edged.calibration.folder import passed_over
from edged.errors import RejectedError, StateError, UsageError
from service.cli.output import print_result
from service.config.locate import find_config
from service.units import format_bytes

if TYPE_CHECKING:
    from service.calibration.image_set import CalibrationSet
    from service.config.load import Config

JSON = dict[str, Any]
_LISTED = 10
Work = Callable[["CalibrationSet", str], JSON]


def add(options: Namespace) -> int:
    """Copy images into the calibration folder of a model (`edged calib add`)."""
    from service.calibration.add import add_images

    if not options.paths and not options.from_capture:
        raise UsageError("nothing to add; give images or folders, or --from-capture")

    def add_to(calibration: CalibrationSet, name: str) -> JSON:
        captured = [entry.path for entry in calibration.ring.entries()] if options.from_capture else []
        result = add_images(calibration, options.paths, options.class_name, captured, options.dry_run)
        return {"model": name, "folder": str(calibration.folder), **result.to_dict()}

    return _one(options, add_to, added_text)


def list_images(options: Namespace) -> int:
    """Show how many calibration images a model has, and whether its cache is current (`edged calib list`)."""
    return _each(options, lambda calibration, _: calibration.describe(), list_text)


def verify(options: Namespace) -> int:
    """Find calibration images that are unusable, repeated or wrongly labeled (`edged calib verify`)."""
    from service.calibration import checks

    return _each(options, lambda calibration, _: checks.verify(calibration), verify_text)


def stats(options: Namespace) -> int:
    """Show the distributions of the calibration images (`edged calib stats`)."""
    from service.calibration.checks import statistics

    return _each(options, lambda calibration, _: statistics(calibration), stats_text)


def purge(options: Namespace) -> int:
    """Erase the images that were kept of live requests (`edged calib purge`)."""

    def erase(calibration: CalibrationSet, name: str) -> JSON:
        ring = calibration.ring
        try:
            gone = ring.purge()
        except OSError as error:
            raise StateError(
                f"cannot remove images under {ring.folder}: {error.strerror}; remove the folder"
            ) from error
        return {"model": name, "removed": len(gone), "bytes": sum(entry.bytes for entry in gone)}

    return _one(options, erase, purge_text)


def _one(options: Namespace, work: Work, text: Callable[[JSON], str]) -> int:
    """Do the work for the model that the options name; print the result and return the exit code."""
    result = work(_set(_config(options), options.model), options.model)
    print_result(options, result, text)
    return _exit_code(result)


def _each(options: Namespace, work: Work, text: Callable[[JSON], str]) -> int:
    """Do the work for one model or for all; print the results and return the exit code."""
    config = _config(options)
    names = [options.model] if options.model is not None else [model.name for model in config.models]
    results = [work(_set(config, name), name) for name in names]
    print_result(options, {"models": results}, lambda answer: "\n\n".join(map(text, answer["models"])))
    return max(map(_exit_code, results))


def _exit_code(result: JSON) -> int:
    wrong = result.get("refused") or result.get("ok") is False
    return RejectedError.exit_code if wrong else 0


def _config(options: Namespace) -> Config:
    from service.config.load import load_config

    return load_config(find_config(options.config))


def _set(config: Config, name: str) -> CalibrationSet:
    from service.calibration.image_set import calibration_set

    return calibration_set(config, name)


def added_text(result: JSON) -> str:
    """Return what was added and what was refused, for people."""
    lines = [f"{entry['path']} {entry['reason']}" for entry in result["refused"]]
    dry = result["dry_run"]
    counts = f"{len(result['added'])} {'would be added' if dry else 'added'}"
    counts += f", {result['known']} known already, {len(result['refused'])} refused"
    lines.append(f"{result['folder']}: {counts}")
    files = [*result["added"], *result["labels"]]
    lines += [f"  {file if file.isprintable() else repr(file)}" for file in files[:_LISTED]]
    if len(files) > _LISTED:
        lines.append(f"  and {len(files) - _LISTED} more; --json lists all")
    if dry:
        lines.append("nothing was written; run it without --dry-run to add them")
    elif result["undo"] is not None:
        lines.append(f"undo: {result['undo']}")
    return "\n".join(lines)


def list_text(result: JSON) -> str:
    """Return how many images there are, for people."""
    from service.cli.tables import two_columns

    captured = result["captured"]
    kept = f"{captured['images']}, {format_bytes(captured['bytes'])}, the oldest of {captured['oldest']}"
    classes = ", ".join(f"{name} {count}" for name, count in result["classes"].items())
    return two_columns(
        [
            (result["model"], f"{result['folder']}{split_text(result)}"),
            ("images", f"{result['images']}, {format_bytes(result['bytes'])}; {result['used']} are used"),
            ("classes", classes or "none: the images are in no class folders"),
            ("label files", str(result["labelled"])),
            *passed_over_rows(result["passed_over"]),
            ("cache", result["cache"]),
            ("live images", kept if captured["images"] else "none kept"),
        ]
    )


def verify_text(result: JSON) -> str:
    """Return what is wrong with the images, for people."""
    lines = []
    for finding in result["findings"]:
        lines.append(f"{finding['level']:7}  {finding['what']}")
        if len(finding["files"]) > 1 or finding["level"] != "error":
            lines += [f"           {file}" for file in finding["files"]]
    state = "good" if result["ok"] else "not good"
    return "\n".join(
        [*lines, f"{result['model']}: {result['usable']} of {result['images']} images are usable; {state}"]
    )


def stats_text(result: JSON) -> str:
    """Return the distributions of the images, for people."""
    from service.cli.tables import two_columns

    def numbers(values: list[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values)

    def extent(values: dict[str, float]) -> str:
        return f"{values['least']:g} to {values['most']:g}, median {values['median']:g}"

    shares = result["classes"] or result["boxes"]
    return two_columns(
        [
            (result["model"], f"{result['images']} images in {result['folder']}{split_text(result)}"),
            ("mean", f"{numbers(result['mean'])} (configured {numbers(result['configured_mean'])})"),
            ("std", f"{numbers(result['std'])} (configured {numbers(result['configured_std'])})"),
            ("width", extent(result["width"])),
            ("height", extent(result["height"])),
            *passed_over_rows(result["passed_over"]),
            ("boxes" if result["boxes"] else "classes", ", ".join(f"{k} {n}" for k, n in shares.items()) or "none"),
        ]
    )


def split_text(result: JSON) -> str:
    """Return which images of a data.yaml were taken, to go behind its path."""
    return f", {result['split']} of the data.yaml" if result["split"] else ""


def passed_over_rows(others: dict[str, int]) -> list[tuple[str, str]]:
    """Return a row for the files of types that edged does not read, if there are any."""
    line = passed_over(others)
    return [("other types", line)] if line else []


def purge_text(result: JSON) -> str:
    """Return how many images were erased, for people."""
    return f"{result['model']}: {result['removed']} images of requests removed, {format_bytes(result['bytes'])}"
