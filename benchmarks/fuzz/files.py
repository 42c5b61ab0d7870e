"""The files that edged reads, and the code that reads them, as targets of the fuzzer."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import shutil
import sqlite3
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from benchmarks.fuzz.edits import edited, json_documents, yaml_texts
from benchmarks.fuzz.target import Case, Target
from benchmarks.hostile.detectors import VALUE, VALUES, detector
from benchmarks.hostile.mutations import valid_files
from benchmarks.hostile.spelling import as_zip
from edged.artifacts.integrity import expected_files, find_damage
from edged.artifacts.reader import read_artifact
from edged.artifacts.store import ModelStore
from edged.artifacts.weights import decoded_state
from edged.calibration.places import find_images
from edged.calibration.yolo_labels import read_labels
from edged.errors import ArchitectureError, ArtifactError, CalibrationError, ConfigError, EngineError, RejectedError
from edged.execution.tensorrt_engine import Sidecar
from edged.json_document import MALFORMED
from edged.models.inspection import inspect_checkpoint
from service.cli import render as tables
from service.config.load import load_config
from service.config.locate import find_socket
from service.daemon.live_description import describe
from service.http.model_panel import model_panel
from service.intake import content, run_folder
from service.journal.states import WAY, State
from service.journal.store import Journal
from service.reporting.data import gather, without_pictures
from service.reporting.page import render
from service.reporting.text import summary
from service.storage.paths import Paths
from service.worker.interface import Interface

ROOT = Path(__file__).parents[2]
ARTIFACT = Path("models/m/gen/1")  # below the folder of a target, as below a state folder
_HEADER = 12_000  # bytes of a safetensors file of a ResNet-20 that are header, or nearly


# Targets, and how many inputs of each are tried at length.
COUNTS = {
    "checkpoint": 2500,
    "manifest": 1500,
    "weights": 1500,
    "warmup": 2500,
    "report": 1500,
    "journal": 1500,
    "records": 2500,
    "config": 3000,
    "images": 2500,
}


def file_targets(artifact: Path) -> dict[str, Target]:
    """Return the targets for files by name.

    Args:
        artifact: Folder of a whole artifact of a small classifier, with warm-up images.
    """
    prepare = partial(_copy_artifact, artifact)
    found = (
        Target("checkpoint", "checkpoint", _checkpoints(), _read_checkpoint, (RejectedError,)),
        Target(
            "manifest", "manifest.json", _in_artifact("manifest.json", artifact), _read_manifest, _ARTIFACT, prepare
        ),
        Target("weights", "weights.safetensors", _tensors(artifact, "weights"), _read_weights, _ARTIFACT, prepare),
        Target("warmup", "warmup.safetensors", _tensors(artifact, "warmup"), _read_warmup, _ARTIFACT, prepare),
        Target("config", "config file", _configs(), _read_config, (ConfigError,), _make_images),
        Target(
            "images",
            "data.yaml, list of images, labels",
            _image_places(),
            _read_images,
            (CalibrationError,),
            _make_images,
        ),
        Target("report", "report.json and what is next to it", _reports(artifact), _read_report, (), _make_update),
        Target("journal", "rows of journal.db", _rows(), _read_rows, (), _make_update),
        Target("records", "notes and side files", _records(), _read_records, (EngineError,)),
    )
    return {target.name: target for target in found}


_ARTIFACT = (ArtifactError, ArchitectureError)


def _one(name: str, contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[Case]:
    return contents.map(lambda data: Case({name: data}))


# Checkpoints


def _checkpoints() -> st.SearchStrategy[Case]:
    files = {**valid_files(), "yolov5": as_zip(detector(), VALUES, VALUE)}
    reached = [
        edited([files["zip"], files["yolov5"]]),
        edited([files["legacy"]], reach=20_000),
        edited([files["safetensors"]], reach=_HEADER),
        *(_pickles(files[form]) for form in ("zip", "yolov5")),
    ]
    return _one("m.pt", st.one_of(reached))


def _pickles(zipped: bytes) -> st.SearchStrategy[bytes]:
    """Return zips whose pickle is damaged and whose checksums are right."""
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    pickled = next(data for name, data in entries if name.endswith("data.pkl"))

    def packed(data: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, other in entries:
                archive.writestr(name, data if name.endswith("data.pkl") else other)
        return file.getvalue()

    return edited([pickled]).map(packed)


def _read_checkpoint(folder: Path) -> None:
    """Read a checkpoint as the watcher and the worker do."""
    path = folder / "m.pt"
    content.is_checkpoint(path)
    content.inspect(path)
    inspect_checkpoint(path).lines()


# Artifacts


def _copy_artifact(artifact: Path, folder: Path) -> None:
    shutil.copytree(artifact, folder / ARTIFACT)


def _in_artifact(name: str, artifact: Path) -> st.SearchStrategy[Case]:
    document = json.loads((artifact / name).read_bytes())
    return _one(str(ARTIFACT / name), json_documents(document))


def _tensors(artifact: Path, name: str) -> st.SearchStrategy[Case]:
    """Return damaged tensors, whose digest in the manifest is right."""
    data = (artifact / f"{name}.safetensors").read_bytes()
    manifest = json.loads((artifact / "manifest.json").read_bytes())

    def with_manifest(changed: bytes) -> Case:
        digest = {"sha256": hashlib.sha256(changed).hexdigest(), "bytes": len(changed)}
        text = json.dumps(manifest | {name: manifest[name] | digest}).encode()
        return Case({str(ARTIFACT / f"{name}.safetensors"): changed, str(ARTIFACT / "manifest.json"): text})

    header = 8 + int.from_bytes(data[:8], "little")
    return st.one_of(edited([data], reach=header), edited([data])).map(with_manifest)


def _read_manifest(folder: Path) -> None:
    """Read a manifest as the supervisor does, then as a generation does."""
    store = ModelStore(folder / "models")
    find_damage(folder / ARTIFACT)
    with contextlib.suppress(ArtifactError):
        expected_files(folder / ARTIFACT)
    with contextlib.suppress(ArtifactError):
        store.require_whole("m", 1)
    with contextlib.suppress(*MALFORMED, ArtifactError):  # as `interface_on_disk` does
        Interface.of_manifest(store.manifest("m", 1))
    artifact = read_artifact(folder / ARTIFACT)
    artifact.load_warmup()
    artifact.load_model()


def _read_weights(folder: Path) -> None:
    artifact = read_artifact(folder / ARTIFACT)
    decoded_state(artifact.directory / "weights.safetensors")
    artifact.load_model()


def _read_warmup(folder: Path) -> None:
    read_artifact(folder / ARTIFACT).load_warmup()


# The config


def _configs() -> st.SearchStrategy[Case]:
    annotated = (ROOT / "configs" / "edged.yaml").read_text().replace("/srv/calibration", "images")
    model = {"name": "m", "calibration": {"dir": "images"}, "labels": ["a", "b"], "runtime": "auto", "priority": 1}
    document = {**yaml.safe_load(annotated), "models": [model, {**model, "name": "n"}], "state_dir": "state"}
    plain = json_documents(document)  # JSON is YAML, too
    return _one("edged.yaml", st.one_of(yaml_texts([annotated, yaml.safe_dump(document)]), plain))


def _make_images(folder: Path) -> None:
    for name in ("images", "labels"):
        (folder / "images" / name).mkdir(parents=True)
    for number in range(3):
        (folder / "images" / "images" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def _read_config(folder: Path) -> None:
    path = folder / "edged.yaml"
    with contextlib.suppress(ConfigError):
        find_socket(None, str(path))
    load_config(path)


# Calibration images


def _image_places() -> st.SearchStrategy[Case]:
    document = {"path": ".", "train": "images", "val": ["images/images"], "nc": 2, "names": ["cat", "dog"]}
    yamls = st.one_of(yaml_texts([yaml.safe_dump(document)]), json_documents(document))
    lists = edited([b"images/images/0.png\n./images/images/1.png\n../x.png\n"])
    labels = edited([b"0 0.5 0.5 0.1 0.1\n1 .1 .1 .3 .1 .3 .4 .1 .4\n\n1 1e-1 0.2 0.1 1\n"])
    parts = st.tuples(yamls, lists, labels)
    return parts.map(lambda each: Case(dict(zip(("data.yaml", "list.txt", "images/labels/0.txt"), each, strict=True))))


def _read_images(folder: Path) -> None:
    with contextlib.suppress(CalibrationError):
        find_images(folder / "list.txt")
    images = find_images(folder / "images")
    labels = read_labels(images.root, images.files)
    if labels is not None:
        labels.of_model(2)
        labels.notes()
    find_images(folder / "data.yaml")


# Reports

_PREDICTION = {"class": 1, "name": "cat", "probability": 0.75}
_BOX = {"class": 1, "name": "cat", "score": 0.5, "box": [1.0, 2.0, 30.0, 40.0]}
_PICTURE = {"file": "a.png", "picture": "data:image/png;base64,AAAA", "width": 64, "height": 48}
_PREDICTIONS: tuple[dict[str, Any], ...] = (
    {
        "task": "classification",
        "images": [{**_PICTURE, "truth": _PREDICTION, "fp32": _PREDICTION, "quantized": _PREDICTION}],
    },
    {"task": "detection", "images": [{**_PICTURE, "fp32": [_BOX, _BOX], "quantized": [_BOX]}]},
)


def _reports(artifact: Path) -> st.SearchStrategy[Case]:
    report = json.loads((artifact / "report.json").read_bytes())
    course = {
        "update": 1,
        "started_at": 1767225601.0,
        "memory": [[0.2, 1 << 20], [5.0, 3 << 20]],
        "memory_max": 1 << 30,
    }
    documents = {
        "report.json": json_documents(report, {**report, "layers": report["layers"][:2]}),
        "manifest.json": json_documents(json.loads((artifact / "manifest.json").read_bytes())),
        "predictions.json": json_documents(*_PREDICTIONS),
        "course.json": json_documents({**course, "held_back_s": 1.5}),
    }
    return st.fixed_dictionaries({str(ARTIFACT / name): each for name, each in documents.items()}).map(Case)


def _make_update(folder: Path) -> None:
    """Write a journal with a committed update."""
    with contextlib.closing(Journal(folder / "journal.db")) as journal:
        update = journal.create("m", "best.pt", 1000)
        for state in WAY[1:]:
            published = {"generation": 1} if state is State.PUBLISHED else {}
            journal.advance(update.id, state, stages={"load": 1.0, "quantize": 2.0}, **published)


def _read_report(folder: Path) -> None:
    """Show a report as the daemon and `edged report` do, and the generation as the status page does."""
    store = ModelStore(folder / "models")
    with contextlib.closing(Journal(folder / "journal.db")) as journal:
        data = gather(journal, store, Paths(folder), 1)
    for shown in (data, without_pictures(data)):
        json.dumps(shown, allow_nan=False, ensure_ascii=False).encode()
        render(shown).encode()
        summary(shown, None)
    try:
        live = describe(data["manifest"], data["report"])
    except MALFORMED:  # as the daemon does
        return
    layers = live.pop("layers")
    flags = dict.fromkeys(("pinned", "paused", "probation", "problem", "held", "restarts"))
    model = {"name": "m", "ready": True, "generation": 1, "rss_bytes": 1, "address": "http://x", "drop_dir": "/drop"}
    model_panel(
        0, {**model, **flags, "samples": [], "live": live, "layers": layers, "rollback": None}, None, True
    ).encode()


# The journal

_PRISTINE = "pristine.db"
_COLUMNS = {
    "updates": (
        *("model", "state", "file_name", "file_bytes", "sha256", "key", "generation", "attempt", "code", "reason"),
        *("dropped_at", "updated_at", "stages", "report", "signature"),
    ),
    "events": ("at", "state", "detail"),
    "holds": ("model", "pinned", "paused", "highest_version"),
}
_JSON_COLUMNS = ("stages", "report", "signature", "detail")


def _rows() -> st.SearchStrategy[Case]:
    """Return changes of cells, as JSON: table, column, and the value as a Python literal."""
    report = {"bits": 4, "agreement": 95.0, "swap": {"policy": "auto", "warmup": {"identical": True}}}
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    values = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | texts | st.binary(max_size=8)
    documents = json_documents(report).map(lambda data: data.decode(errors="replace"))
    cells = st.sampled_from([(table, column) for table, columns in _COLUMNS.items() for column in columns])

    def change(cell: tuple[str, str]) -> st.SearchStrategy[tuple[str, str, str]]:
        chosen = documents | values if cell[1] in _JSON_COLUMNS else values
        return chosen.map(lambda value: (*cell, repr(value)))

    changes = st.lists(cells.flatmap(change), min_size=1, max_size=4)
    return _one("changes.json", changes.map(json.dumps).map(str.encode))


def _read_rows(folder: Path) -> None:
    """Read and show a journal with damaged cells as the daemon does, its API and `edged history`."""
    path = folder / "journal.db"
    if not (folder / _PRISTINE).exists():
        shutil.copyfile(path, folder / _PRISTINE)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(folder / _PRISTINE, path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table, column, literal in json.loads((folder / "changes.json").read_bytes()):
            value = float(literal) if literal in ("nan", "inf", "-inf") else ast.literal_eval(literal)
            with contextlib.suppress(sqlite3.IntegrityError):  # some columns must have a value
                connection.execute(f"UPDATE {table} SET {column} = ?", (value,))  # noqa: S608 - names from above
    with contextlib.closing(Journal(path)) as journal:
        updates = [
            *journal.find(),
            *journal.open_updates(),
            *journal.history("m"),
            *journal.history("m", published=False),
        ]
        shown = [update.to_dict() for update in updates]
        events = [event.to_dict() for update in updates for event in journal.events(update.id)]
        held = {model: vars(hold) for model, hold in journal.holds().items()}
        json.dumps([shown, events, held, journal.last_times()], allow_nan=False, ensure_ascii=False).encode()
        tables.history({"model": "m", "updates": shown, "unpublished": shown})
        for update in updates:
            tables.outcome(update.to_dict())
            journal.shares_claim(update)
            journal.retry_of(update.id)
            summary(gather(journal, ModelStore(folder / "models"), Paths(folder), update.id), None)


# Small records


def _records() -> st.SearchStrategy[Case]:
    sidecar = {
        **dict.fromkeys(("key", "model_sha256", "plan_sha256"), "ab" * 32),
        "tensorrt": "10.0",
        "gpu": "Orin",
        "edged": "1.0",
        "integer": True,
        "max_batch": 1,
        "workspace_bytes": 1 << 20,
    }
    documents = {
        "models/m/damaged/1/damage.json": {"why": "x", "at": "2026-01-01T00:00:00.000Z", "update": 3},
        f"run/{run_folder.NOTE}": {"file": "a.pt", "sha256": "0" * 64, "size": 3, "mtime_ns": 5, "inode": 7},
        "engine.json": sidecar,
    }
    contents = {name: json_documents(document) for name, document in documents.items()}
    counter = {"models/m/last": edited([b"17\n"])}
    return st.fixed_dictionaries({**contents, **counter}).map(Case)


def _read_records(folder: Path) -> None:
    store = ModelStore(folder / "models")
    json.dumps(store.quarantined("m"), allow_nan=False).encode()
    store._last("m")
    run = run_folder.scan_run("m", folder / "run")
    run_folder.choose(run)
    Sidecar.read(folder / "engine.json")
