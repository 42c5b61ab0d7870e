import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edged.artifacts.reader import read_artifact
from edged.artifacts.store import ModelStore
from edged.errors import ArtifactError
from edged.quant.grid import QuantizedWeight
from tests.edged.artifacts.samples import ARCHITECTURE, FILES, network_manifest


def test_what_is_written_is_read_back(
    written: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]
) -> None:
    artifact = read_artifact(written)
    assert artifact.architecture == ARCHITECTURE
    assert artifact.input.to_dict() == network_manifest().input
    assert dataclasses.replace(artifact.manifest, weights={}) == dataclasses.replace(network_manifest(), weights={})
    model = artifact.load_model()
    assert not model.training
    expected = {name: weight.decode() for name, weight in parts[0].items()} | parts[1]
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_an_artifact_goes_through_the_store_and_stays_itself_when_current_moves(written: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.switch("m", store.publish("m", written))
    artifact = read_artifact(tmp_path / "models" / "m" / "current")
    assert artifact.directory == store.path("m", 1).resolve()
    assert store.manifest("m", 1) == artifact.manifest.to_dict()


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["missing", "broken"])
def test_a_missing_or_broken_file_is_named(written: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(written / name)
    with pytest.raises(ArtifactError, match=str(written)) as caught:
        read_artifact(written)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_in_the_weights_is_noticed(written: Path) -> None:
    flip_last_byte(written / "weights.safetensors")
    with pytest.raises(ArtifactError, match=r"has sha256 .* its manifest says"):
        read_artifact(written)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", {"name": "alexnet"}),
        ("architecture", ARCHITECTURE.to_dict() | {"name": "resnet9000"}),
        ("input", {"size": 0, "resize": 5, "mean": [0.5], "std": [0.5]}),
        ("input", {"size": 32, "resize": 32, "mean": ["a"], "std": [None]}),
    ],
)
def test_a_manifest_that_this_edged_cannot_follow_is_an_artifact_error(written: Path, key: str, value: object) -> None:
    path = written / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ArtifactError, match=str(written)):
        read_artifact(written)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path} is no artifact: manifest.json: No such file"):
        read_artifact(tmp_path)
