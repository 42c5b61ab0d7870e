"""The commands that need no daemon: `edged inspect`, `edged quantize`, `edged evaluate` and `edged calib DIR`."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error
from edged.calibration.places import EVALUATE
from edged.errors import SignatureError, UsageError
from edged.evaluation.gates import Gates
from edged.models.names import detector_side
from edged.progress import ProgressListener, SilentListener
from edged.signing.envelope import Envelope
from edged.signing.keys import short
from edged.signing.statement import Statement
from edged.signing.verification import read_signature, signature_of
from edged.spec import AUTO, Choice, DetectionSpec, InputSpec, recipe
from service.cli.output import print_result
from service.cli.tables import calibration_table, evaluation_table, export_table, quantization_table, two_columns
from service.units import printable
from service.worker.job import Job

SETTINGS = (
    *("method", "bits", "size_limit", "first_bits", "last_bits", "small_bits", "activation_bits"),
    *("scheme", "levels", "order", "search"),
    *("beam", "damp_ratio", "propagation", "statistics", "cluster_affine", "seed"),
)
THRESHOLDS = ("confidence", "iou", "max_detections")


def quantize(options: Namespace) -> int:
    """Quantize a checkpoint into an artifact folder (`edged quantize`)."""
    from service.worker.pipeline import run_job  # torch, which --help and a wrong option should not wait for

    out: Path = options.out
    if out.exists():
        raise UsageError(f"--out {out} already exists; remove it or choose another folder")
    settings = {name: getattr(options, name) for name in SETTINGS}
    if options.bits == AUTO:  # otherwise --max-drop is a gate alone
        settings["max_drop"] = options.max_drop
    spec = recipe(options.recipe, **settings)
    job = Job(
        checkpoint=options.checkpoint,
        out=out,
        calibration_dir=options.calib,
        cache_root=make_folder(options.cache),
        spec=spec,
        arch=options.arch,
        choice=choice_of(options),
        input=input_overrides(options),
        images=options.images,
        gates=dataclasses.replace(
            Gates(above_chance=False) if options.default_gates else Gates.none(),
            min_agreement=options.min_agreement,
            max_drop=options.max_drop,
            min_accuracy=options.min_accuracy,
        ),
        detection=DetectionSpec.from_dict({name: getattr(options, name) for name in THRESHOLDS}),
        threads=options.threads,
        device=options.device,
        memory_limit=options.memory_limit,
        runtime=options.runtime,
    )
    make_folder(out.parent)
    result = run_job(job, listener_of(options))
    print_result(options, {"out": str(result.artifact), **result.report}, quantization_table)
    return 0


def export(options: Namespace) -> int:
    """Write an artifact as a model of another engine (`edged export`)."""
    from edged.pipeline.export import export as write

    exported = write(
        options.artifact,
        options.out,
        target=options.target,
        format=options.format,
        dynamic_batch=options.dynamic_batch,
    )
    print_result(options, exported.to_dict(), export_table)
    return 0


def inspect(options: Namespace) -> int:
    """Show what edged sees in a checkpoint, without quantizing it (`edged inspect`)."""
    from edged.models.inspection import inspect_checkpoint

    found = inspect_checkpoint(options.checkpoint, options.arch, choice_of(options))
    signature = _claimed_signature(options.checkpoint, found.checkpoint.sha256)
    lines = [*found.lines(), *([] if signature is None else [("signature", _signature_text(signature))])]
    print_result(options, {**found.to_dict(), "signature": signature}, lambda _: two_columns(lines))
    return 0


def _claimed_signature(checkpoint: Path, sha256: str) -> dict[str, Any] | None:
    """Return what the signature next to a file claims, which is not verified; None if there is none."""
    path = signature_of(checkpoint)
    try:
        if (data := read_signature(path)) is None:
            return None
        envelope = Envelope.from_json(data)
        statement = Statement.from_json(envelope.payload)
    except SignatureError as error:
        return {"file": str(path), "problem": str(error)}
    except OSError as error:
        return {"file": str(path), "problem": f"cannot be read: {error.strerror}"}
    return {
        "file": str(path),
        "model": statement.model,
        "version": statement.version,
        "key_ids": [each.key_id for each in envelope.signatures],
        "matches": statement.sha256 == sha256,
    }


def _signature_text(signature: Mapping[str, Any]) -> str:
    if "problem" in signature:
        return f"{signature['file']} cannot be used: {signature['problem']}"
    if not signature["matches"]:
        return f"{signature['file']} is of another file"
    by = ", ".join(printable(short(key_id)) for key_id in signature["key_ids"])
    claims = f"version {signature['version']} of {signature['model']}, by {by}"
    return f"{claims}; not verified: `edged verify FILE --key PUBLIC_KEY` does"


def evaluate(options: Namespace) -> int:
    """Measure the accuracy or mAP of a checkpoint or an artifact (`edged evaluate`)."""
    from edged.pipeline.scoring import open_scorable, score
    from service.worker.pipeline import decode_images, set_up_torch

    listener = listener_of(options)
    set_up_torch(options.threads, "cpu")
    with listener.stage("load"):
        network = open_scorable(
            *(options.model, options.arch, input_overrides(options), choice_of(options), options.preprocessing_of),
            options.runtime,
        )
    with listener.stage("decode"):
        cache = decode_images(options.data, make_folder(options.cache), network.input, None, listener, EVALUATE)
    print_result(options, score(network, cache, options.data, listener), evaluation_table)
    return 0


def calib(options: Namespace) -> int:
    """Build or find the cache of an image folder and show what is in it (`edged calib DIR`)."""
    from service.worker.pipeline import decode_images, set_up_torch

    set_up_torch(options.threads, "cpu")
    spec = (InputSpec.letterbox(detector_side()) if options.letterbox else InputSpec()).override(
        input_overrides(options)
    )
    cache = decode_images(options.folder, make_folder(options.cache), spec, options.images, listener_of(options))
    result = {
        "folder": str(options.folder),
        "cache": str(cache.directory),
        "digest": cache.digest,
        "images": len(cache),
        "calibration": len(cache.calibration),
        "held_out": len(cache.held_out),
        "classes": list(cache.classes),
        "input": spec.to_dict(),
        "skipped": [vars(entry) for entry in cache.skipped],
        "split": cache.split,
        "passed_over": dict(cache.others),
    }
    print_result(options, result, calibration_table)
    return 0


def make_folder(folder: Path) -> Path:
    """Make a folder that the user named, with those around it; the library makes none around the one it writes to."""
    with as_state_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def choice_of(options: Namespace) -> Choice:
    """Return which network of a checkpoint the options choose."""
    head = tuple(word.strip() for word in options.head.split(",")) if options.head else ()
    return Choice(options.key, options.prefix, options.weights, options.stem_pooling, options.stride_in, head)


def input_overrides(options: Namespace) -> dict[str, Any]:
    """Return the fields of InputSpec that the options give."""
    given = {"size": options.input_size, "resize": options.resize, "mean": options.mean, "std": options.std}
    return {key: value for key, value in given.items() if value is not None}


def listener_of(options: Namespace) -> ProgressListener:
    """Return a listener that draws bars on a terminal, or a silent one with --json."""
    if options.json:
        return SilentListener()
    from service.cli.progress_bar import BarListener

    return BarListener(sys.stderr)
