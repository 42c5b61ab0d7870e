"""Atomic writing of an artifact folder: all of its files, synced to the disk, or none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from edged.artifacts.digest import sha256_file
from edged.artifacts.manifest import ONNX, SCHEMA_OF_LEVELS, SCHEMA_VERSION, Manifest
from edged.artifacts.warmup import Warmup, save_warmup
from edged.artifacts.weights import save_weights
from edged.atomic import as_state_error, fsync_tree, rename_into_place, temporary_sibling
from edged.errors import StateError
from edged.execution.saturation import codes_may_saturate
from edged.quant.grid import QuantizedWeight


def write_artifact(
    directory: Path,
    *,
    quantized: Mapping[str, QuantizedWeight],
    rest: Mapping[str, Tensor],
    manifest: Manifest,
    report: Mapping[str, Any],
    warmup: Warmup | None = None,
    onnx: bytes | None = None,
    attachments: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write weights.safetensors, warmup.safetensors, model.onnx, manifest.json and report.json into a new folder.

    The folder appears under its name only when every file is on the disk.

    Args:
        directory: Path of the new folder, which must not exist; its parent must exist.
        quantized: Quantized weights by name.
        rest: All other tensors of the state dict by name.
        manifest: Manifest whose `weights`, `warmup`, `onnx` and `schema_version` are filled in here.
        report: Report in JSON types. "artifact_bytes" (size of the weights file) and "compression" (checkpoint bytes
            per artifact byte) are added to its `totals`, because they are known only now.
        warmup: Warmup images and their recorded outputs; None for no such file.
        onnx: The network as an ONNX model, for engines that compute it; None for no such file.
        attachments: Additional files for human readers, by name; they are not read back with the artifact.

    Returns:
        The report as it was written.

    Raises:
        ArtifactError: A name is both in `quantized` and in `rest`.
        StateError: `directory` exists, the disk is full or the folder cannot be written.
    """
    require_absent(directory)
    temporary = temporary_sibling(directory)
    with as_state_error(directory):
        temporary.mkdir()
        try:
            weights = temporary / "weights.safetensors"
            _save(weights, quantized, rest)
            size = weights.stat().st_size
            completed = dataclasses.replace(
                manifest,
                weights={
                    "sha256": sha256_file(weights),
                    "bytes": size,
                    "wide_codes": codes_may_saturate(quantized),
                },
                warmup=None if warmup is None else _save_warmup(temporary / "warmup.safetensors", warmup),
                onnx=None if onnx is None else _save_onnx(temporary / ONNX, onnx),
                schema_version=_schema_of(quantized),
            )
            figures = {"artifact_bytes": size, "compression": manifest.source["bytes"] / size}
            report = {**report, "totals": {**report.get("totals", {}), **figures}}
            (temporary / "manifest.json").write_text(completed.to_json())
            (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n")
            for name, data in (attachments or {}).items():
                (temporary / name).write_bytes(data)
            fsync_tree(temporary)
            rename_into_place(temporary, directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return report


def require_absent(directory: Path) -> None:
    """Raise an error if there is something at the path where an artifact is to be written.

    Raises:
        StateError: `directory` exists.
    """
    if directory.exists():
        raise StateError(f"cannot write {directory}: it already exists; remove it or choose another folder")


def _schema_of(quantized: Mapping[str, QuantizedWeight]) -> int:
    return SCHEMA_VERSION if all(weight.is_uniform for weight in quantized.values()) else SCHEMA_OF_LEVELS


def _save(path: Path, quantized: Mapping[str, QuantizedWeight], rest: Mapping[str, Tensor]) -> None:
    try:
        save_weights(path, quantized, rest)
    except SafetensorError as error:
        raise _unwritable(path, error) from error


def _save_warmup(path: Path, warmup: Warmup) -> dict[str, Any]:
    try:
        return save_warmup(path, warmup)
    except SafetensorError as error:
        raise _unwritable(path, error) from error


def _save_onnx(path: Path, model: bytes) -> dict[str, Any]:
    path.write_bytes(model)
    return {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}


def _unwritable(path: Path, error: SafetensorError) -> StateError:
    """Convert the error with which safetensors reports a full disk."""
    return StateError(f"cannot write {path}: {error}; free space there or make it writable")
