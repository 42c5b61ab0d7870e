"""`edged calib add|list|verify|stats|purge`: looks after the calibration images of the models of a config file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edged.errors import EdgedError, RejectedError, StateError, UsageError
from service.cli.parser import fail
from service.config.locate import find_config
from service.units import format_bytes

if TYPE_CHECKING:
    from service.calibration.image_set import CalibrationSet
    from service.config.load import Config

COMMANDS = ("add", "list", "verify", "stats", "purge")


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        results = [options.run(options, name) for name in _models(options)]
    except EdgedError as error:
        return fail(options.json, str(error), error.code, error.exit_code)
    except KeyboardInterrupt:
        return fail(options.json, "interrupted", "interrupted", 130)
    if options.json:
        sys.stdout.write(json.dumps({"models": results} if options.many else results[0]) + "\n")
    else:
        sys.stdout.write("\n\n".join(options.text(result) for result in results) + "\n")
    return max(_exit_code(result) for result in results)


def add(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Copy images into the calibration folder."""
    from service.calibration.add import add_images

    calibration = _set(options, name)
    if not options.paths and not options.from_capture:
        raise UsageError("nothing to add; give images or folders, or --from-capture")
    captured = [entry.path for entry in calibration.ring.entries()] if options.from_capture else []
    result = add_images(calibration, options.paths, options.class_name, captured)
    return {"model": name, "folder": str(calibration.folder), **result.to_dict()}


def describe(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What is there."""
    return _set(options, name).describe()


def verify(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Look for what is wrong."""
    from service.calibration import checks as calib_checks

    return calib_checks.verify(_set(options, name))


def stats(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Look at the distributions."""
    from service.calibration.checks import statistics

    return statistics(_set(options, name))


def purge(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Erase the images of live requests."""
    ring = _set(options, name).ring
    try:
        gone = ring.purge()
    except OSError as error:
        raise StateError(f"cannot remove images under {ring.folder}: {error.strerror}; remove the folder") from error
    return {"model": name, "removed": len(gone), "bytes": sum(entry.bytes for entry in gone)}


def _exit_code(result: dict[str, Any]) -> int:
    wrong = result.get("refused") or result.get("ok") is False
    return RejectedError.exit_code if wrong else 0


def _models(options: argparse.Namespace) -> list[str]:
    options.configured = _config(options)
    return [options.model] if options.model is not None else [model.name for model in options.configured.models]


def _config(options: argparse.Namespace) -> Config:
    from service.config.load import load_config

    return load_config(find_config(options.config))


def _set(options: argparse.Namespace, name: str) -> CalibrationSet:
    from service.calibration.image_set import calibration_set

    return calibration_set(options.configured, name)


class _Parser(argparse.ArgumentParser):
    """One line and exit code 2 for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read on."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="edged calib")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    adding = _command(commands, "add", add, "copy images into a model's calibration folder", added_text, one=True)
    adding.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="an image, or a folder of images")
    adding.add_argument("--class", dest="class_name", metavar="NAME", help="the class folder that they belong to")
    adding.add_argument("--from-capture", action="store_true", help="the images that were kept of live requests")
    _command(commands, "list", describe, "what is there, and whether its cache is current", list_text)
    _command(commands, "verify", verify, "look for images that cannot be used or say nothing", verify_text)
    _command(commands, "stats", stats, "means, deviations, sizes and classes", stats_text)
    _command(commands, "purge", purge, "erase the images that were kept of live requests", purge_text, one=True)
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace, str], dict[str, Any]],
    help_text: str,
    text: Callable[[dict[str, Any]], str],
    *,
    one: bool = False,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    of = "of the config" if one else "of the config; default: all of them"
    command.add_argument("model", metavar="MODEL", nargs=None if one else "?", help=of)
    command.add_argument("--config", metavar="FILE", help="default: $EDGED_CONFIG, then /etc/edged/edged.yaml")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run, text=text, many=not one)
    return command


def added_text(result: dict[str, Any]) -> str:
    """`edged calib add`."""
    lines = [f"{entry['path']} {entry['reason']}" for entry in result["refused"]]
    counts = f"{len(result['added'])} added, {result['known']} known already, {len(result['refused'])} refused"
    return "\n".join([*lines, f"{result['folder']}: {counts}"])


def list_text(result: dict[str, Any]) -> str:
    """`edged calib list`."""
    from service.cli.tables import two_columns

    captured = result["captured"]
    kept = f"{captured['images']}, {format_bytes(captured['bytes'])}, the oldest of {captured['oldest']}"
    classes = ", ".join(f"{name} {count}" for name, count in result["classes"].items())
    return two_columns(
        [
            (result["model"], result["folder"]),
            ("images", f"{result['images']}, {format_bytes(result['bytes'])}; {result['used']} are used"),
            ("classes", classes or "none: images lie in no class folders"),
            ("label files", str(result["labelled"])),
            ("cache", result["cache"]),
            ("live images", kept if captured["images"] else "none kept"),
        ]
    )


def verify_text(result: dict[str, Any]) -> str:
    """`edged calib verify`."""
    lines = []
    for finding in result["findings"]:
        lines.append(f"{finding['level']:7}  {finding['what']}")
        if len(finding["files"]) > 1 or finding["level"] != "error":
            lines += [f"           {file}" for file in finding["files"]]
    state = "good" if result["ok"] else "not good"
    return "\n".join(
        [*lines, f"{result['model']}: {result['usable']} of {result['images']} images are usable; {state}"]
    )


def stats_text(result: dict[str, Any]) -> str:
    """`edged calib stats`."""
    from service.cli.tables import two_columns

    def numbers(values: list[float]) -> str:
        return ", ".join(f"{value:.3f}" for value in values)

    def extent(values: dict[str, float]) -> str:
        return f"{values['least']:g} to {values['most']:g}, median {values['median']:g}"

    shares = result["classes"] or result["boxes"]
    return two_columns(
        [
            (result["model"], f"{result['images']} images in {result['folder']}"),
            ("mean", f"{numbers(result['mean'])} (configured {numbers(result['configured_mean'])})"),
            ("std", f"{numbers(result['std'])} (configured {numbers(result['configured_std'])})"),
            ("width", extent(result["width"])),
            ("height", extent(result["height"])),
            ("boxes" if result["boxes"] else "classes", ", ".join(f"{k} {n}" for k, n in shares.items()) or "none"),
        ]
    )


def purge_text(result: dict[str, Any]) -> str:
    """`edged calib purge`."""
    return f"{result['model']}: {result['removed']} images of requests removed, {format_bytes(result['bytes'])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
