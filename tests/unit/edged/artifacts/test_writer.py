import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edged.artifacts.writer import write_artifact
from edged.errors import ArtifactError, StateError
from edged.quant.grid import QuantizedWeight
from tests.support.artifact_samples import FILES, network_manifest


def test_the_folder_has_three_files_and_nothing_is_left_next_to_it(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted(FILES)
    assert list(written.parent.iterdir()) == [written]


def test_whoever_may_read_one_file_may_read_all(written: Path) -> None:
    plain = written.parent / "plain"
    plain.touch()
    assert {(written / name).stat().st_mode for name in FILES} == {plain.stat().st_mode}


def test_the_writer_adds_sizes_to_the_report(written: Path) -> None:
    totals = json.loads((written / "report.json").read_text())["totals"]
    size = (written / "weights.safetensors").stat().st_size
    assert totals == {"x": 1, "artifact_bytes": size, "compression": 1_000_000 / size}


def test_an_existing_folder_is_not_modified(written: Path) -> None:
    before = {name: (written / name).read_bytes() for name in FILES}
    with pytest.raises(StateError, match="already exists"):
        write_artifact(written, quantized={}, rest={}, manifest=network_manifest(), report={})
    assert {name: (written / name).read_bytes() for name in FILES} == before


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]
) -> None:
    name = next(iter(parts[0]))
    with pytest.raises(ArtifactError, match="both quantized and kept"):
        write_artifact(
            tmp_path / "a", quantized=parts[0], rest={name: torch.zeros(1)}, manifest=network_manifest(), report={}
        )
    with pytest.raises(StateError, match="No such file or directory"):
        write_artifact(tmp_path / "missing" / "a", quantized={}, rest={}, manifest=network_manifest(), report={})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_raises_a_state_error_and_leaves_nothing_behind(
    full_disk: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]
) -> None:
    with pytest.raises(StateError, match="cannot write") as caught:
        write_artifact(full_disk / "a", quantized=parts[0], rest=parts[1], manifest=network_manifest(), report={})
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(full_disk.iterdir()) == []


def test_attachments_are_stored_with_the_artifact_but_not_part_of_it(
    tmp_path: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]
) -> None:
    attachments = {"notes.json": b"{}"}
    folder = tmp_path / "a"
    manifest = network_manifest()
    write_artifact(folder, quantized=parts[0], rest=parts[1], manifest=manifest, report={}, attachments=attachments)
    assert (folder / "notes.json").read_bytes() == b"{}"
    assert {path.name for path in folder.iterdir()} == {*FILES, "notes.json"}
