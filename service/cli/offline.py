"""`python -m service.cli.offline quantize|evaluate|calib ...`: the commands that compute, without a daemon.

`edged` becomes this process, with OpenMP's settings in its environment; see service.cli.main.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from edged.errors import EdgedError, UsageError
from edged.evaluation.gates import Gates
from edged.models.names import detector_side
from edged.progress import ProgressListener, SilentListener
from edged.spec import (
    DEFAULT_RECIPE,
    MAX_WHOLE,
    RECIPES,
    Bounds,
    DetectionSpec,
    InputSpec,
    Method,
    Order,
    QuantSpec,
    Scheme,
    Statistics,
    bounds_of,
    recipe,
)
from service.cli import calib as calib_cli
from service.cli.parser import fail
from service.cli.tables import calibration_table, evaluation_table, quantization_table
from service.units import parse_bytes
from service.worker.job import Job

THRESHOLDS = ("confidence", "iou", "max_detections")


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    if arguments[:1] == ["calib"] and arguments[1:2] and arguments[1] in calib_cli.COMMANDS:
        return calib_cli.main(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        result = options.run(options)
    except EdgedError as error:
        return fail(options.json, str(error), error.code, error.exit_code)
    except MemoryError:
        return fail(options.json, "ran out of memory; use fewer images or free memory", "memory", 75)
    except KeyboardInterrupt:
        return fail(options.json, "interrupted", "interrupted", 130)
    sys.stdout.write((json.dumps(result) if options.json else options.table(result)) + "\n")
    return 0


def quantize(options: argparse.Namespace) -> dict[str, Any]:
    """Checkpoint and images to an artifact folder."""
    from service.worker.pipeline import run_job  # torch, which --help and a wrong option should not wait for

    out: Path = options.out
    if out.exists():
        raise UsageError(f"--out {out} exists already; remove it or choose another folder")
    settings = ("method", "bits", "scheme", "order", "beam", "damp_ratio", "propagation", "statistics", "seed")
    spec = recipe(options.recipe, **{name: getattr(options, name) for name in settings})
    job = Job(
        checkpoint=options.checkpoint,
        out=out,
        calibration_dir=options.calib,
        cache_root=_cache(options),
        spec=spec,
        arch=options.arch,
        input=_overrides(options),
        images=options.images,
        gates=Gates(options.min_agreement, options.max_drop, options.min_accuracy),
        detection=DetectionSpec.from_dict({name: getattr(options, name) for name in THRESHOLDS}),
        threads=options.threads,
        device=options.device,
        memory_limit=options.memory_limit,
    )
    result = run_job(job, _listener(options))
    return {"out": str(result.artifact), **result.report}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy, or a detector's mAP, of a checkpoint or an artifact on labelled images."""
    from edged.pipeline.scoring import open_scorable, score
    from service.worker.pipeline import decode_images, set_up_torch

    listener = _listener(options)
    set_up_torch(options.threads, "cpu")
    with listener.stage("load"):
        network = open_scorable(options.model, options.arch, _overrides(options))
    with listener.stage("decode"):
        cache = decode_images(options.data, _cache(options), network.input, None, listener)
    return score(network, cache, options.data, listener)


def calib(options: argparse.Namespace) -> dict[str, Any]:
    """Build or find the cache of an image folder and say what is in it."""
    from service.worker.pipeline import decode_images, set_up_torch

    set_up_torch(options.threads, "cpu")
    spec = (InputSpec.letterbox(detector_side()) if options.letterbox else InputSpec()).override(_overrides(options))
    cache = decode_images(options.folder, _cache(options), spec, options.images, _listener(options))
    return {
        "folder": str(options.folder),
        "cache": str(cache.directory),
        "digest": cache.digest,
        "images": len(cache),
        "calibration": len(cache.calibration),
        "held_out": len(cache.held_out),
        "classes": list(cache.classes),
        "input": spec.to_dict(),
        "skipped": [vars(entry) for entry in cache.skipped],
    }


class _Parser(argparse.ArgumentParser):
    """One line and exit code 2 for a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read on."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="edged")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    quantizing = commands.add_parser("quantize", help="quantize a checkpoint into an artifact folder")
    quantizing.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    quantizing.add_argument("--calib", type=Path, required=True, metavar="DIR", help="calibration images")
    quantizing.add_argument("--out", type=Path, required=True, metavar="DIR", help="artifact folder to make")
    _add_quantization(quantizing)
    quantizing.set_defaults(run=quantize, table=quantization_table)

    evaluating = commands.add_parser("evaluate", help="accuracy or mAP of a checkpoint or an artifact")
    evaluating.add_argument("model", type=Path, metavar="CHECKPOINT_OR_ARTIFACT")
    evaluating.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="a folder of images per class; for a detector images with YOLO labels",
    )
    evaluating.set_defaults(run=evaluate, table=evaluation_table)

    looking = commands.add_parser(
        "calib",
        help="decode a folder of calibration images and say what is in it",
        epilog=f"edged calib {'|'.join(calib_cli.COMMANDS)} --help: the images of a configured model",
    )
    looking.add_argument("folder", type=Path, metavar="DIR")
    looking.add_argument(
        "--letterbox", action="store_true", help=f"prepare the images as for a detector ({detector_side()} pixels)"
    )
    looking.set_defaults(run=calib, table=calibration_table)

    for command in (quantizing, evaluating, looking):
        _add_common(command)
    for command in (quantizing, looking):
        command.add_argument(
            "--images", type=int, default=1024, metavar="N", help="use at most N images, balanced over classes (1024)"
        )
    for command in (quantizing, evaluating):
        command.add_argument("--arch", metavar="NAME", help="expect this architecture instead of recognizing it")
    return parser


def _add_quantization(command: argparse.ArgumentParser) -> None:
    bounds = bounds_of(QuantSpec)
    bits = range(int(bounds["bits"].least), int(bounds["bits"].most) + 1)
    command.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help="what is not given follows from it")
    command.add_argument("--bits", type=int, choices=bits, metavar=f"{bits[0]}..{bits[-1]}")
    for name, kind in (("--method", Method), ("--order", Order), ("--scheme", Scheme), ("--statistics", Statistics)):
        command.add_argument(name, choices=[member.value for member in kind])
    command.add_argument(
        "--beam", type=int, metavar=_range(bounds["beam"]), help="partial assignments kept in each row (1: greedy)"
    )
    command.add_argument("--damp-ratio", type=float, metavar=_range(bounds["damp_ratio"]))
    command.add_argument("--propagation", type=float, metavar=_range(bounds["propagation"]))
    command.add_argument("--seed", type=int, metavar=_range(bounds["seed"]))
    command.add_argument(
        "--memory-limit", type=_bytes, metavar="SIZE", help="memory of the device to work in, for example 1GiB"
    )
    command.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="what computes; auto takes a GPU if there is one",
    )
    command.add_argument("--min-agreement", type=float, default=0.0, metavar="PERCENT", help="fail below this")
    command.add_argument("--max-drop", type=float, metavar="POINTS", help="most points of top-1 or mAP50-95 to lose")
    command.add_argument("--min-accuracy", type=float, metavar="PERCENT", help="least top-1 or mAP50-95 to reach")
    served = DetectionSpec()
    for threshold, number, what in (
        ("confidence", float, "least score of a box"),
        ("iou", float, "largest overlap of two boxes of one class"),
        ("max-detections", int, "most boxes an image"),
    ):
        default = getattr(served, threshold.replace("-", "_"))
        told = f"of a detector: {what} ({default})"
        command.add_argument(f"--{threshold}", type=number, default=default, metavar="N", help=told)


def _range(bounds: Bounds) -> str:
    """Return how --help shows the values that an option may have."""
    return f"{bounds.least:g}..{bounds.most:g}" if bounds.most < MAX_WHOLE else f"{bounds.least:g}.."


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the network's input")
    command.add_argument("--resize", type=int, metavar="PIXELS", help="length of the shorter side before the crop")
    command.add_argument("--mean", type=_floats, metavar="R,G,B")
    command.add_argument("--std", type=_floats, metavar="R,G,B")
    command.add_argument("--cache", type=Path, metavar="DIR", help="where decoded images are kept")
    command.add_argument("--threads", type=int, metavar="N")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 0.5,0.5,0.5") from None


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {"size": options.input_size, "resize": options.resize, "mean": options.mean, "std": options.std}
    return {key: value for key, value in given.items() if value is not None}


def _cache(options: argparse.Namespace) -> Path:
    if options.cache is not None:
        return Path(options.cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "images"


def _listener(options: argparse.Namespace) -> ProgressListener:
    if options.json:
        return SilentListener()
    from service.cli.progress_bar import BarListener

    return BarListener(sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
