"""The manifest of an artifact; torch is not imported, because the supervisor reads manifests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edged.errors import ArtifactError
from edged.spec import AUTO, Levels

SCHEMA_VERSION = 1
# Of artifacts whose weights have power levels. An edged that does not know these refuses the version.
SCHEMA_OF_LEVELS = 2
ONNX = "model.onnx"  # file of the network as an ONNX model

# Required keys of each nested object, with their types. An object may have more keys.
_NESTED: dict[str, dict[str, type]] = {
    "architecture": {"name": str},
    "input": {"size": int, "resize": int, "mean": list, "std": list},
    "quantization": {"method": str},
    "source": {"sha256": str, "bytes": int, "name": str, "format": str},
    "calibration": {
        "digest": str,
        "images": int,
        "held_out": int,
        "skipped": int,
        "folder_labels": bool,
    },
    "versions": {"edged": str},
    "weights": {"sha256": str, "bytes": int},
}
_NESTED_OR_NULL: dict[str, dict[str, type]] = {
    "warmup": {"sha256": str, "bytes": int, "images": int, "outputs_sha256": str, "threads": int},
    "onnx": {"sha256": str, "bytes": int},
    "serve": {"engine": str, "precision": str},
}
_PLAIN: dict[str, type] = {"schema_version": int, "name": str, "started_at": str, "finished_at": str}
# Keys that older manifests lack: detectors, warmup images, quantized activations, ONNX and measured engines came later.
_OPTIONAL = ("task", "detection", "warmup", "activations", "onnx", "serve")
TASKS = ("classification", "detection")


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json.

    Attributes:
        name: Name of the model in the daemon, "" outside a daemon.
        architecture: Architecture of the network, as `Architecture.to_dict()` returns it.
        input: Preprocessing of images, as `InputSpec.to_dict()` returns it.
        quantization: Quantization settings, as `QuantSpec.to_dict()` returns them.
        source: Checkpoint that was quantized: sha256 (hex), bytes, name, format.
        calibration: Calibration images: digest (hex), images used, held_out, skipped, folder_labels (bool), and whether
            `classes` are the names of their folders (names_classes), which older manifests lack: there they are.
        classes: Class names in the order of the logits or of a detector's class ids, from the checkpoint where it has
            them, otherwise from the folders of the calibration images; None if unknown.
        versions: Versions of edged, torch and python, by name.
        started_at: Time at which the quantization started, ISO 8601 UTC.
        finished_at: Time at which the quantization finished, ISO 8601 UTC.
        weights: File weights.safetensors: sha256 (hex), bytes, and whether integers may saturate with its codes
            (wide_codes), which older manifests lack; filled in by the writer.
        task: Task of the network, one of TASKS.
        detection: Thresholds of a detector, as `DetectionSpec.to_dict()` returns them. None for a classifier.
        warmup: File warmup.safetensors: sha256 (hex), bytes, images, outputs_sha256 (hex), threads; filled in by the
            writer. None if there is no such file.
        activations: Ranges of the activations, as `ActivationQuantization.to_dict()` returns them. None without any.
        onnx: File model.onnx: sha256 (hex) and bytes; filled in by the writer. None if there is no such file.
        serve: What the model was judged with, and is served with: engine (one of `edged.spec.RUNTIMES`) and precision
            (one of `edged.spec.PRECISIONS`). None in older manifests.
        schema_version: Version of this schema: SCHEMA_OF_LEVELS if the weights have power levels, or SCHEMA_VERSION.
            Filled in by the writer.
    """

    name: str
    architecture: Mapping[str, Any]
    input: Mapping[str, Any]
    quantization: Mapping[str, Any]
    source: Mapping[str, Any]
    calibration: Mapping[str, Any]
    classes: tuple[str, ...] | None
    versions: Mapping[str, str]
    started_at: str
    finished_at: str
    weights: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"
    detection: Mapping[str, Any] | None = None
    warmup: Mapping[str, Any] | None = None
    activations: Mapping[str, Any] | None = None
    onnx: Mapping[str, Any] | None = None
    serve: Mapping[str, Any] | None = None
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Convert the manifest to JSON types, with the schema version first."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data = {key: dict(value) if isinstance(value, Mapping) else value for key, value in data.items()}
        data["classes"] = None if self.classes is None else list(self.classes)
        return {"schema_version": data.pop("schema_version"), **data}

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Create a manifest from the result of `to_dict`.

        Raises:
            ArtifactError: A key is missing, unknown or of the wrong type, or the schema version is not supported.
        """
        _check(data)
        values = dict(data)
        values["classes"] = None if data["classes"] is None else tuple(data["classes"])
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Parse the text of manifest.json.

        Raises:
            ArtifactError: The text is not a JSON object, or `from_dict` rejects it.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"manifest is not JSON ({error}); quantize the checkpoint again") from None
        if not isinstance(data, dict):
            raise ArtifactError(
                f"manifest is a JSON {type(data).__name__}, not an object; quantize the checkpoint again"
            )
        return cls.from_dict(data)


def _check(data: Mapping[str, Any]) -> None:
    """Raise ArtifactError for the first key that is not as documented."""
    version = data.get("schema_version")
    if not isinstance(version, int) or version not in (SCHEMA_VERSION, SCHEMA_OF_LEVELS):
        readable = f"{SCHEMA_VERSION} and {SCHEMA_OF_LEVELS}"
        raise ArtifactError(f"manifest schema_version has value {version!r:.80}; this edged reads {readable}")
    known = {item.name for item in dataclasses.fields(Manifest)}
    if missing := sorted(known - set(data) - set(_OPTIONAL)):
        raise ArtifactError(f"manifest lacks {missing[0]!r}; quantize the checkpoint again")
    if unknown := sorted(set(data) - known):
        raise ArtifactError(f"manifest has the unknown key {unknown[0]!r}; a newer edged may have written it")
    for key, kind in _PLAIN.items():
        _check_kind(key, data[key], kind)
    for key, entries in _NESTED.items():
        _check_nested(key, data[key], entries)
    _check_bits(data["quantization"])
    for key, entries in _NESTED_OR_NULL.items():
        if data.get(key) is not None:
            _check_nested(key, data[key], entries)
    if data.get("activations") is not None:
        _check_kind("activations", data["activations"], dict)
    _check_levels(data)
    _check_task(data.get("task", TASKS[0]), data.get("detection"))
    classes = data["classes"]
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ArtifactError(f"manifest key 'classes' has value {classes!r:.80}; need a list of names or null")


def _check_bits(quantization: Mapping[str, Any]) -> None:
    if quantization.get("bits") != AUTO:
        _check_nested("quantization", quantization, {"bits": int})


def _check_levels(data: Mapping[str, Any]) -> None:
    levels, version = data["quantization"].get("levels", Levels.UNIFORM.value), data["schema_version"]
    if (levels == Levels.POWER.value) != (version == SCHEMA_OF_LEVELS):
        raise ArtifactError(
            f"manifest key 'quantization.levels' has value {levels!r:.80}, and schema_version {version};"
            " quantize the checkpoint again"
        )
    if version == SCHEMA_OF_LEVELS and data.get("activations") is not None:
        raise ArtifactError(
            "manifest has ranges of activations, and weights with power levels, which no engine computes on integers;"
            " quantize the checkpoint again"
        )


def _check_nested(key: str, value: Any, entries: Mapping[str, type]) -> None:
    _check_kind(key, value, dict)
    for entry, kind in entries.items():
        if entry not in value:
            raise ArtifactError(f"manifest lacks '{key}.{entry}'; quantize the checkpoint again")
        _check_kind(f"{key}.{entry}", value[entry], kind)


def _check_task(task: object, detection: object) -> None:
    if task not in TASKS:
        raise ArtifactError(f"manifest key 'task' has value {task!r:.80}; need {' or '.join(TASKS)}")
    if not isinstance(detection, dict) if task == "detection" else detection is not None:
        wanted = "dict" if task == "detection" else "null"
        raise ArtifactError(f"manifest key 'detection' has value {detection!r:.80}; need {wanted} for {task}")


def _check_kind(key: str, value: object, kind: type) -> None:
    # bool is an int in Python, not in JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ArtifactError(f"manifest key {key!r} has value {value!r:.80}; need {kind.__name__}")
