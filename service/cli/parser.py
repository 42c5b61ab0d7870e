"""The command line of `edged`: the table of commands, and the options of each.

Only the called command gets its options, and its function is imported when it runs: `edged status` has 50 ms in all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from edged.errors import UsageError
from edged.spelling import closest

if TYPE_CHECKING:
    from pathlib import Path

    from edged.spec import Bounds

_MAX_NUMBER = 10**15

_EXIT_CODES = """\
exit codes:
  0 ok; 1 fault; 2 usage; 3 rejected; 4 not ready; 5 rolled back; 69 unavailable; 73 cannot write state;
  75 deferred; 77 permission; 78 config
"""


class Command(NamedTuple):
    """A command of `edged`.

    Attributes:
        summary: Its line in `edged --help`, without a capital and a full stop.
        example: A call of it.
        add_options: Adds its options and arguments to a parser.
        function: The function that runs it, as "module:name"; it takes the parsed options and returns the exit code.
        computes: Whether it runs in a process that starts with OpenMP's settings in its environment.
        notes: More of its help, above the exit codes.
    """

    summary: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]
    function: str
    computes: bool = False
    notes: str = ""

    def run(self, options: argparse.Namespace) -> int:
        """Import the function and run it; return the exit code."""
        module, _, name = self.function.partition(":")
        code: int = getattr(importlib.import_module(module), name)(options)
        return code


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; a usage error, --help and --version end the process.

    Args:
        arguments: The command and its arguments, without the program's name.

    Returns:
        The options, with the `Command` as `command`, its name as `name` and the names of its options as `options`;
        `json` is False where there is no --json.
    """
    words = list(arguments)
    if " ".join(words[:2]) in COMMANDS:  # `calib add` is one command, as `calib DIR` is
        words[:2] = [" ".join(words[:2])]
    parser = build_parser(words[:1])
    options, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(_unrecognized(unknown, options.options))
    return options


def _unrecognized(unknown: Sequence[str], known: Collection[str]) -> str:
    """Return what is wrong with arguments that a command does not have."""
    given = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    meant = closest(given[0], known) if given else None
    hint = "" if meant is None else f"; did you mean {meant}?"
    return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def build_parser(called: Collection[str] | None = None) -> argparse.ArgumentParser:
    """Build the parser of the whole command line.

    Args:
        called: Names of the commands that need their options; None for all commands.
    """
    parser = _Parser(
        prog="edged",
        description="Turns a checkpoint dropped on an edge box into a quantized model in service.",
        epilog=f"`edged COMMAND --help` shows the options of a command and an example.\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name, command in COMMANDS.items():
        notes = f"\n{command.notes}\n" if command.notes else ""
        added = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example:\n  {command.example}\n{notes}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if called is None or name in called:
            command.add_options(added)
            known = [option for action in added._actions for option in action.option_strings]
            added.set_defaults(command=command, name=name, json=False, options=known)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, with exit code 2."""

    def _check_value(self, action: argparse.Action, value: str) -> None:
        """Suggest the choice that is most similar to a wrong one."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            meant = closest(str(value), map(str, action.choices or ()))
            if meant is not None:
                error.message = f"invalid choice: {value!r}; did you mean {meant}?"
            raise

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the help is, and exit."""
        separator = "" if message.endswith("?") else ";"
        self.exit(UsageError.exit_code, f"{self.prog}: {message}{separator} see {self.prog} --help\n")


class _Version(argparse.Action):
    """--version, which looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        from edged.version import __version__

        sys.stdout.write(f"edged {__version__}\n")
        parser.exit()


def _add_config(parser: argparse.ArgumentParser) -> None:
    text = "config file; default: $EDGED_CONFIG, then /etc/edged/edged.yaml"
    parser.add_argument("--config", metavar="FILE", help=text)


def _add_config_and_json(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_json(parser)


def _add_check_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="config file to check, as with --config")
    text = "check the file alone, not the calibration images"
    parser.add_argument("--skip-images", action="store_true", help=text)
    _add_config_and_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


_IMAGES = "folder of calibration images, a data.yaml (its train), or a .txt file with one image a line"


def _add_client(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that asks the daemon."""
    text = "UNIX socket of the daemon; default: $EDGED_SOCKET, or the one of the config"
    parser.add_argument("--socket", metavar="PATH", help=text)
    _add_config_and_json(parser)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="checkpoint to copy; the original stays where it is")
    parser.add_argument("--model", required=True, metavar="NAME", help="model of the config that it is for")
    parser.add_argument(
        "--wait", action="store_true", help="wait until it is live, rejected or deferred; see exit codes"
    )
    parser.add_argument("--until-end", action="store_true", help="with --wait: keep waiting while it is deferred")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="with --wait: exit with code 4 after this time"
    )
    _add_client(parser)


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="this model only; exit code 4 if it does not serve")
    text = "show it again and again until Ctrl-C; off a terminal a line for each change"
    parser.add_argument("--watch", action="store_true", help=text)
    _add_client(parser)


def _add_history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="this model only, with its generations; default: all")
    _add_client(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("update", metavar="UPDATE", help="number of the update, or a model for its latest update")
    parser.add_argument("--output", metavar="FILE", help="write the page to this file, complete in itself")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    _add_client(parser)


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="lines about this model only; default: all lines")
    parser.add_argument("--update", type=_number, metavar="N", help="lines about this update only")
    parser.add_argument("--follow", action="store_true", help="keep printing new lines until Ctrl-C")
    text = "lines from this time on: 10m, 2h, 1d ago, or for example 2026-01-31T12:30"
    parser.add_argument("--since", metavar="TIME", help=text)
    parser.add_argument("--lines", type=_number, default=200, metavar="N", help="print at most the last N lines (200)")
    _add_client(parser)


def _add_administration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model of the config")
    _add_client(parser)


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    text = "generation to put in service, of those that are kept; default: the previous one"
    parser.add_argument("--to", type=_number, metavar="N", help=text)
    _add_administration(parser)


def _add_update_action(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("update", type=int, metavar="UPDATE", help="number of the update, see `edged history`")
    _add_client(parser)


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list what would be removed, and remove nothing")
    _add_client(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="file to look into")
    _add_arch(parser)
    _add_choice(parser)
    _add_json(parser)


def _add_keygen(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    text = "path of the two files without their suffixes: NAME.key, the private one, and NAME.pub"
    parser.add_argument("name", type=Path, metavar="NAME", help=text)
    _add_json(parser)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint to sign")
    parser.add_argument("--model", required=True, metavar="NAME", help="model of the devices' config that it is for")
    text = "version of the model: a whole number, larger for a newer one"
    parser.add_argument("--version", type=_number, required=True, metavar="N", help=text)
    text = "private key; repeat the option to sign with several"
    parser.add_argument("--key", type=Path, action="append", required=True, metavar="PRIVATE_KEY", help=text)
    parser.add_argument("--out", type=Path, metavar="PATH", help="signature to write; default: FILE.sig")
    _add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint to verify")
    text = "accepted public key; repeat the option to accept any of several"
    parser.add_argument("--key", type=Path, action="append", required=True, metavar="PUBLIC_KEY", help=text)
    parser.add_argument("--model", metavar="NAME", help="model that it has to be for; default: any")
    parser.add_argument("--signature", type=Path, metavar="PATH", help="its signature; default: FILE.sig")
    _add_json(parser)


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="PyTorch checkpoint of a supported network")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help=_IMAGES)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="artifact folder to create")
    _add_arch(parser)
    _add_choice(parser)
    _add_quantization(parser)
    _add_gates(parser)
    _add_thresholds(parser)
    _add_image_count(parser)
    _add_computing(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from edged.spec import RUNTIMES

    parser.add_argument("model", type=Path, metavar="CHECKPOINT_OR_ARTIFACT", help="file or artifact folder to measure")
    text = "a folder of images for each class; for a detector images with YOLO labels, or a data.yaml (its val)"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=text)
    text = "prepare the images as this artifact does, to compare a checkpoint with it"
    parser.add_argument("--preprocessing-of", type=Path, metavar="ARTIFACT", help=text)
    text = "engine that computes an artifact; auto (the default) for the one that would serve it"
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help=text)
    _add_arch(parser)
    _add_choice(parser)
    _add_computing(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from edged.spec import QuantSpec, bounds_of
    from service.comparison.job import DEFAULT_METHODS, METHODS, PEERS

    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="PyTorch checkpoint of a supported network")
    parser.add_argument("--calib", type=Path, required=True, metavar="DIR", help=_IMAGES)
    text = "labelled images: a folder for each class; for a detector images with YOLO labels, or a data.yaml (its val)"
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=text)
    extra = [name for name in METHODS if name not in DEFAULT_METHODS]
    text = f"methods, of {', '.join(METHODS)}, {', '.join(PEERS)}; default: the first {len(METHODS)} but {extra[0]}"
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=text)
    bounds = bounds_of(QuantSpec)["bits"]
    bits = range(int(bounds.least), int(bounds.most) + 1)
    text = "bits of each weight of all layers, one or several numbers (4)"
    parser.add_argument(
        "--bits", type=int, nargs="+", choices=bits, default=[4], metavar=f"{bits[0]}..{bits[-1]}", help=text
    )
    text = "also measure the tools of others: Brevitas, AIMET, and at 8 bits NNCF and quantize_static"
    parser.add_argument("--peers", action="store_true", help=text)
    text = (
        "most optimization steps of each layer or block; default: as many as in each method's paper (AdaRound 10000,"
        " BRECQ 20000, AdaQuant 100, bit-split 10 rounds; AIMET 15000)"
    )
    parser.add_argument("--iterations", type=_number, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice (0)")
    text = "folder for comparison.json, .csv and .svg; rows that it has of the same comparison are not measured again"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    text = "device that computes; auto takes a GPU if there is one"
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=text)
    _add_arch(parser)
    _add_choice(parser)
    _add_image_count(parser)
    _add_computing(parser)


def _add_calib(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from edged.models.names import detector_side

    parser.add_argument("folder", type=Path, metavar="DIR", help=_IMAGES)
    text = f"prepare the images as for a detector ({detector_side()} pixels)"
    parser.add_argument("--letterbox", action="store_true", help=text)
    _add_image_count(parser)
    _add_computing(parser)


def _add_calib_add(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    _add_calib_model(parser)
    parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="an image, a folder, a data.yaml or a list")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class folder to put the images into")
    parser.add_argument("--from-capture", action="store_true", help="add the images that were kept of live requests")
    parser.add_argument("--dry-run", action="store_true", help="say what would be copied where, and write nothing")


def _add_calib_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model of the config")
    _add_config_and_json(parser)


def _add_calib_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="name of a model of the config; default: all")
    _add_config_and_json(parser)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a network of a checkpoint, and say what its tensors do not tell."""
    from edged.spec import HEAD_LAYERS, STEM_POOLING, STRIDES_IN, WEIGHTS

    text = "key of the state dict in the file, nested keys joined by dots; default: look for it"
    parser.add_argument("--key", metavar="KEY", help=text)
    text = "prefix of the names of the network's tensors; default: look for it"
    parser.add_argument("--prefix", metavar="PREFIX", help=text)
    text = "averaged weights (EMA, SWA) or the last ones; auto takes averaged ones where there are any"
    parser.add_argument("--weights", choices=WEIGHTS, default=WEIGHTS[0], help=text)
    text = "whether max-pooling follows the first convolution; auto: what labeled images speak for, or what is usual"
    parser.add_argument("--stem-pooling", choices=STEM_POOLING, default=STEM_POOLING[0], help=text)
    text = "convolution of a bottleneck with the stride: 3x3 (ResNet v1.5) or the first 1x1 (v1); auto as above"
    parser.add_argument("--stride-in", choices=STRIDES_IN, default=STRIDES_IN[0], help=text)
    text = f"layers of a head of several layers, such as linear,relu,linear; known: {', '.join(HEAD_LAYERS)}"
    parser.add_argument("--head", metavar="LAYERS", help=text)


def _add_arch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", metavar="NAME", help="architecture to expect, instead of recognizing it")


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    from edged.spec import (
        AUTO,
        DEFAULT_RECIPE,
        RECIPES,
        RUNTIMES,
        Levels,
        Method,
        Order,
        QuantSpec,
        Scheme,
        Search,
        Statistics,
        bounds_of,
    )

    bounds = bounds_of(QuantSpec)
    text = f"sets every quantization option that is not given ({DEFAULT_RECIPE})"
    parser.add_argument("--recipe", choices=RECIPES, default=DEFAULT_RECIPE, help=text)
    bits = range(int(bounds["bits"].least), int(bounds["bits"].most) + 1)
    text = "bits of each weight; auto chooses them for each layer, within --size-limit or --max-drop"
    parser.add_argument("--bits", type=_bits, metavar=f"{bits[0]}..{bits[-1]}|auto", help=text)
    text = "with --bits auto: most bytes of the artifact's weights, for example 3MiB"
    parser.add_argument("--size-limit", type=_bytes, metavar="SIZE", help=text)
    same = "those of --bits"
    for name, which, default in (
        ("--first-bits", "the first layer", same),
        ("--last-bits", "the last layer, for a detector all heads", same),
        (
            "--small-bits",
            "layers with few weights and of a detector's heads",
            f"{same}, at least 7 without --activation-bits none",
        ),
    ):
        text = f"bits of each weight of {which}; default: {default}"
        parser.add_argument(name, type=int, choices=bits, metavar=f"{bits[0]}..{bits[-1]}", help=text)
    text = (
        "bits of each activation: 8 to compute on integers, none for floats, auto (the default) for whichever is faster"
        " here and passes the gates"
    )
    parser.add_argument("--activation-bits", type=_activation_bits, default=AUTO, metavar="auto|8|none", help=text)
    for name, kind, text in (
        ("--method", Method, "how weights are rounded"),
        ("--order", Order, "in which order the columns of a layer are quantized"),
        ("--search", Search, "how the range of each row is found"),
        ("--levels", Levels, "spacing of the codes' values; power (method requant) is for storage, computed in float"),
        ("--scheme", Scheme, "range of the codes"),
        ("--statistics", Statistics, "how batch normalization is corrected"),
    ):
        parser.add_argument(name, choices=[member.value for member in kind], help=text)
    text = "bring a classifier's logits closer to full precision by the nearest of some centroids (CAT), if that helps"
    parser.add_argument("--cluster-affine", action="store_true", default=None, help=text)
    for name, number, text in (
        ("--beam", int, "partial assignments kept in each row (1: greedy)"),
        ("--damp-ratio", float, "damping, relative to the mean of the diagonal"),
        ("--propagation", float, "share of earlier layers' error to correct"),
        ("--seed", int, "seed of every random choice"),
    ):
        allowed = _range(bounds[name.lstrip("-").replace("-", "_")])
        parser.add_argument(name, type=number, metavar=allowed, help=text)
    text = "engine that is going to serve the model; auto (the default) for the fastest one here"
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help=text)
    text = "memory of the device to work in, for example 1GiB"
    parser.add_argument("--memory-limit", type=_bytes, metavar="SIZE", help=text)
    text = "device that computes; auto takes a GPU if there is one"
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=text)


def _add_export(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument(
        "artifact", type=Path, metavar="ARTIFACT", help="artifact folder, as `edged quantize` writes it"
    )
    text = "file of the model; with --format triton, the model's folder in a model repository"
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=text)
    text = "onnx: a file. triton: a folder with config.pbtxt, for Triton and OpenVINO Model Server"
    parser.add_argument("--format", choices=("onnx", "triton"), default="onnx", help=text)
    text = "engine that will run the model"
    parser.add_argument("--target", choices=("onnxruntime", "openvino", "tensorrt"), default="onnxruntime", help=text)
    text = "take any number of images in a call, instead of one"
    parser.add_argument("--dynamic-batch", action="store_true", help=text)
    _add_json(parser)


def _range(bounds: Bounds) -> str:
    """Return how --help shows the values that an option may have."""
    from edged.spec import MAX_WHOLE

    return f"{bounds.least:g}..{bounds.most:g}" if bounds.most < MAX_WHOLE else f"{bounds.least:g}.."


def _add_gates(parser: argparse.ArgumentParser) -> None:
    text = "least agreement with the full-precision model (0)"
    parser.add_argument("--min-agreement", type=float, default=0.0, metavar="PERCENT", help=text)
    text = "most points of top-1 or mAP50-95 to lose; with --bits auto, as few bytes are taken as that needs"
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=text)
    parser.add_argument("--min-accuracy", type=float, metavar="PERCENT", help="least top-1 or mAP50-95 to reach")
    text = "accept a network of absurd weights or constant outputs"
    parser.add_argument("--no-default-gates", dest="default_gates", action="store_false", help=text)


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    from edged.spec import DetectionSpec

    usual = DetectionSpec()
    for name, kind, default, meaning in (
        ("--confidence", float, usual.confidence, "least score of a box"),
        ("--iou", float, usual.iou, "largest overlap of two boxes of one class"),
        ("--max-detections", int, usual.max_detections, "most boxes in an image"),
    ):
        parser.add_argument(name, type=kind, default=default, metavar="N", help=f"detectors: {meaning} ({default})")


def _add_image_count(parser: argparse.ArgumentParser) -> None:
    text = "use at most N images, balanced over classes (1024)"
    parser.add_argument("--images", type=int, default=1024, metavar="N", help=text)


def _add_computing(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that decodes images and computes."""
    from pathlib import Path

    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the network's input")
    parser.add_argument("--resize", type=int, metavar="PIXELS", help="length of the shorter side before the crop")
    parser.add_argument("--mean", type=_floats, metavar="R,G,B", help="mean that is subtracted from each channel")
    parser.add_argument("--std", type=_floats, metavar="R,G,B", help="deviation that each channel is divided by")
    text = "where decoded images are kept; default: $XDG_CACHE_HOME or ~/.cache, in edged/images"
    parser.add_argument("--cache", type=Path, default=_default_cache(), metavar="DIR", help=text)
    parser.add_argument("--threads", type=int, metavar="N", help="threads that compute; default: one for each core")
    _add_json(parser)


def _default_cache() -> Path:
    from pathlib import Path

    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "images"


def _bytes(text: str) -> int:
    from service.units import parse_bytes

    try:
        return parse_bytes(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bits(text: str) -> int | str:
    from edged.spec import AUTO, QuantSpec, bounds_of

    bounds = bounds_of(QuantSpec)["bits"]
    value = int(text) if text.isascii() and text.isdecimal() else text
    if not bounds.allow(value):
        raise argparse.ArgumentTypeError(f"{text!r:.40}; write {bounds}")
    return AUTO if value == AUTO else int(value)


def _activation_bits(text: str) -> int | str | None:
    from edged.spec import ACTIVATION_BITS, AUTO

    known: dict[str, int | str | None] = {AUTO: AUTO, str(ACTIVATION_BITS): ACTIVATION_BITS, "none": None}
    if text not in known:
        raise argparse.ArgumentTypeError(f"{text!r:.40}; write {', '.join(known)}")
    return known[text]


def _number(text: str) -> int:
    """Read the number of a generation, of an update or of lines."""
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= _MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number from 1 on; write for example 3")
    return int(text)


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers; write them like 0.5,0.5,0.5") from None


def _administration(name: str, summary: str) -> Command:
    return Command(summary, f"edged {name} classifier", _add_administration, "service.cli.commands:administer")


COMMANDS: dict[str, Command] = {
    "run": Command(
        "run the daemon", "edged run --config /etc/edged/edged.yaml", _add_config, "service.cli.commands:run"
    ),
    "check-config": Command(
        "check a config file and the images that it names, and list every mistake with its line",
        "edged check-config edged.yaml",
        _add_check_config,
        "service.cli.commands:check_config",
    ),
    "doctor": Command(
        "check this machine for everything that keeps edged from working",
        "edged doctor --json",
        _add_config_and_json,
        "service.cli.commands:doctor",
    ),
    "submit": Command(
        "copy a checkpoint into the drop folder of a model",
        "edged submit resnet18.pth --model classifier --wait",
        _add_submit,
        "service.cli.commands:submit",
    ),
    "status": Command(
        "show what is live and which updates are running",
        "edged status --json",
        _add_status,
        "service.cli.commands:status",
    ),
    "history": Command(
        "list updates and how each one ended",
        "edged history classifier",
        _add_history,
        "service.cli.commands:history",
    ),
    "report": Command(
        "show what one update did, in words or as a page",
        "edged report 7 --open",
        _add_report,
        "service.cli.report:report",
    ),
    "logs": Command(
        "show the last lines of the daemon's log",
        "edged logs classifier --follow",
        _add_logs,
        "service.cli.logs:logs",
        notes="The daemon keeps its last 2000 lines. When none answers, the journal of edged.service is shown.",
    ),
    "rollback": Command(
        "put the previous generation of a model, or another one, back in service",
        "edged rollback classifier --to 3",
        _add_rollback,
        "service.cli.commands:rollback",
        notes="`edged history MODEL` shows the generations that are kept.",
    ),
    "pin": _administration("pin", "keep a model at its generation: no other one goes live"),
    "unpin": _administration("unpin", "let other generations of a model go live again"),
    "pause": _administration("pause", "leave the files for a model in the drop folder"),
    "resume": _administration("resume", "process the files for a model again, those that waited included"),
    "retry": Command(
        "take the file of a superseded, cancelled, rejected or failed update again",
        "edged retry 7",
        _add_update_action,
        "service.cli.commands:act_on_update",
        notes="An update that is deferred is tried again at once.",
    ),
    "cancel": Command(
        "end an update that has not gone live, and keep its file",
        "edged cancel 7",
        _add_update_action,
        "service.cli.commands:act_on_update",
    ),
    "gc": Command(
        "remove files that are no longer needed", "edged gc --dry-run", _add_gc, "service.cli.commands:collect_garbage"
    ),
    "inspect": Command(
        "show what edged sees in a checkpoint, without quantizing it",
        "edged inspect resnet18.pth",
        _add_inspect,
        "service.cli.offline:inspect",
        notes="A file that would be rejected exits with code 3 and the reason.",
        computes=True,  # and can be confined, as a process of its own
    ),
    "keygen": Command(
        "generate a key pair that signs checkpoints",
        "edged keygen release",
        _add_keygen,
        "service.cli.signing:keygen",
        notes="The private key is for the machine that makes checkpoints. Existing files are never overwritten.",
    ),
    "sign": Command(
        "sign a checkpoint for a model",
        "edged sign best.pt --model shelf --version 7 --key release.key",
        _add_sign,
        "service.cli.signing:sign",
    ),
    "verify": Command(
        "check a checkpoint and its signature as a device does",
        "edged verify best.pt --model shelf --key release.pub",
        _add_verify,
        "service.cli.signing:verify",
        notes="A signature that is missing or not accepted exits with code 3 and the reason.",
    ),
    "quantize": Command(
        "quantize a checkpoint into an artifact folder, without a daemon",
        "edged quantize resnet18.pth --calib images --out resnet18-4bit --bits 4",
        _add_quantize,
        "service.cli.offline:quantize",
        computes=True,
    ),
    "export": Command(
        "write an artifact as a model of another engine",
        "edged export resnet18-4bit --format onnx --target onnxruntime --out resnet18.onnx",
        _add_export,
        "service.cli.offline:export",
        computes=True,
    ),
    "evaluate": Command(
        "measure the accuracy or mAP of a checkpoint or an artifact on labelled images",
        "edged evaluate resnet18-4bit --data labelled-images",
        _add_evaluate,
        "service.cli.offline:evaluate",
        computes=True,
    ),
    "compare": Command(
        "compare quantization methods on a checkpoint: accuracy, time and memory of each",
        "edged compare resnet18.pth --calib images --data labelled-images --bits 4 3 2 --out comparison",
        _add_compare,
        "service.cli.compare:compare",
        notes="Each method is measured in a process of its own. Some take hours: see --methods and --iterations.",
    ),
    "calib": Command(
        "decode a folder of calibration images and show what is in it",
        "edged calib images --input-size 224",
        _add_calib,
        "service.cli.offline:calib",
        computes=True,
        notes="edged calib add|list|verify|stats|purge --help: the images of a configured model",
    ),
    "calib add": Command(
        "copy images into the calibration folder of a model",
        "edged calib add classifier --from-capture",
        _add_calib_add,
        "service.cli.calib:add",
        computes=True,
    ),
    "calib list": Command(
        "show how many calibration images a model has, and whether its cache is current",
        "edged calib list classifier",
        _add_calib_models,
        "service.cli.calib:list_images",
        computes=True,
    ),
    "calib verify": Command(
        "find calibration images that are unusable, repeated or wrongly labelled",
        "edged calib verify --json",
        _add_calib_models,
        "service.cli.calib:verify",
        computes=True,
    ),
    "calib stats": Command(
        "show the mean, deviation, sizes and classes of the calibration images",
        "edged calib stats classifier",
        _add_calib_models,
        "service.cli.calib:stats",
        computes=True,
    ),
    "calib purge": Command(
        "erase the images that were kept of live requests",
        "edged calib purge classifier",
        _add_calib_model,
        "service.cli.calib:purge",
        computes=True,
    ),
}
