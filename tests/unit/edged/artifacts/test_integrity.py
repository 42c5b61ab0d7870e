"""What is found damaged in an artifact, and what is not looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edged.artifacts.integrity import find_damage, manifest_digest_line

CONTENTS = {"weights": b"codes" * 9, "warmup": b"pixels", "onnx": b"graph"}
NAMES = {"weights": "weights.safetensors", "warmup": "warmup.safetensors", "onnx": "model.onnx"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    entries = {}
    for key, data in CONTENTS.items():
        (tmp_path / NAMES[key]).write_bytes(data)
        entries[key] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = json.dumps(entries).encode()
    (tmp_path / "manifest.json").write_bytes(manifest)
    (tmp_path / "manifest.sha256").write_bytes(manifest_digest_line(manifest))
    return tmp_path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["weights.safetensors", "warmup.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_bit_a_cut_and_a_missing_file_are_found(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    assert find_damage(folder) is None
    damage(folder / name)
    found = find_damage(folder)
    assert found is not None
    assert str(folder / name) in found
    assert "\n" not in found


def test_the_onnx_model_counts_only_where_it_is_asked_for(folder: Path) -> None:
    flip(folder / "model.onnx")
    assert find_damage(folder) is None
    assert "model.onnx has sha256" in str(find_damage(folder, derived=True))


def test_what_older_versions_and_models_without_them_lack_is_no_damage(folder: Path) -> None:
    (folder / "manifest.sha256").unlink()
    entries = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"weights": entries["weights"], "warmup": None}))
    (folder / "warmup.safetensors").unlink()
    assert find_damage(folder) is None
    (folder / "manifest.json").write_text("{}")
    assert "names no weights" in str(find_damage(folder))
    assert "is missing" in str(find_damage(folder / "gone"))


def test_a_digest_file_without_digest_says_nothing(folder: Path) -> None:
    (folder / "manifest.sha256").write_bytes(b"\xff" * 64)
    assert find_damage(folder) is None
