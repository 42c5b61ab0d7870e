import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from benchmarks.fuzz.odd_values import changed, changes, every_place
from edged.artifacts.manifest import SCHEMA_OF_LEVELS
from edged.artifacts.reader import read_artifact
from edged.artifacts.store import ModelStore
from edged.artifacts.writer import write_artifact
from edged.errors import ArtifactError
from edged.models.registry import Architecture
from edged.quant.grid import QuantizedWeight
from edged.spec import DetectionSpec, Levels, Method, QuantSpec
from tests.support.artifact_samples import ARCHITECTURE, FILES, manifest, network_manifest, power_weight
from tests.support.yolov5_samples import tiny_model, tiny_plan


def test_a_written_artifact_is_read_back(
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


def test_an_artifact_with_power_levels_is_read_back(
    tmp_path: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]
) -> None:
    quantized = {name: power_weight(weight.shape, 4) for name, weight in parts[0].items()}
    spec = QuantSpec(method=Method.REQUANT, levels=Levels.POWER)
    described = dataclasses.replace(network_manifest(), quantization=spec.to_dict())
    write_artifact(tmp_path / "a", quantized=quantized, rest=parts[1], manifest=described, report={})
    artifact = read_artifact(tmp_path / "a")
    assert artifact.manifest.schema_version == SCHEMA_OF_LEVELS
    state = artifact.load_model().state_dict()
    assert all(torch.equal(state[name], weight.decode()) for name, weight in quantized.items())


def write_detector(path: Path, **changes: object) -> dict[str, Tensor]:
    architecture = Architecture.detector(tiny_plan())
    state = dict(tiny_model().state_dict())
    values = {
        "architecture": architecture.to_dict(),
        "input": architecture.default_input.to_dict(),
        "classes": tiny_plan().names,
        "task": "detection",
        "detection": DetectionSpec(0.5, 0.3, 20).to_dict(),
    }
    write_artifact(path, quantized={}, rest=state, manifest=manifest(**values | changes), report={})
    return state


def test_a_detector_is_read_back_with_its_plan_names_and_thresholds(tmp_path: Path) -> None:
    state = write_detector(tmp_path / "detector")
    artifact = read_artifact(tmp_path / "detector")
    assert artifact.architecture.plan == tiny_plan()
    assert artifact.manifest.classes == ("cat", "dog", "cow")
    assert artifact.detection == DetectionSpec(0.5, 0.3, 20)
    assert all(torch.equal(value, state[name]) for name, value in artifact.load_model().state_dict().items())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "classification", "detection": None}, "task is classification, its architecture's detection"),
        ({"classes": ("cat", "dog")}, "classes are not those of its detector"),
        ({"detection": {"iou": 2}}, "iou has value 2; choose 0 to 1"),
        ({"detection": {"nms": 2}}, "unknown detection setting 'nms'"),
    ],
)
def test_an_inconsistent_detector_is_rejected(tmp_path: Path, changes: dict, reason: str) -> None:
    write_detector(tmp_path / "detector", **changes)
    with pytest.raises(ArtifactError, match=reason):
        read_artifact(tmp_path / "detector")


def test_an_artifact_in_the_store_stays_the_same_when_current_moves(written: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    store.switch("m", store.publish("m", written))
    artifact = read_artifact(tmp_path / "models" / "m" / "current")
    assert artifact.directory == store.path("m", 1).resolve()
    assert store.manifest("m", 1) == artifact.manifest.to_dict()


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [name for name in FILES if name != "report.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["missing", "broken"])
def test_a_missing_or_damaged_file_raises_an_error_with_its_path(
    written: Path, name: str, damage: Callable[[Path], object]
) -> None:
    damage(written / name)
    with pytest.raises(ArtifactError, match=str(written)) as caught:
        read_artifact(written)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit_in_the_weights_is_detected(written: Path) -> None:
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
def test_an_unsupported_manifest_raises_an_artifact_error(written: Path, key: str, value: object) -> None:
    path = written / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ArtifactError, match=str(written)):
        read_artifact(written)


def test_a_folder_without_manifest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=f"{tmp_path} is not an artifact: manifest.json: No such file"):
        read_artifact(tmp_path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier with ranges of activations and a detector, both of few bytes."""
    folder = tmp_path_factory.mktemp("artifacts")
    activations = {"bits": 8, "ranges": {"x": [-1.0, 2.0]}, "float_layers": []}
    classifier = dataclasses.replace(
        network_manifest(), activations=activations, serve={"engine": "torch", "precision": "integer"}
    )
    write_artifact(folder / "classifier", quantized={}, rest={"w": torch.ones(1)}, manifest=classifier, report={})
    write_detector(folder / "detector")
    return {kind: folder / kind for kind in ("classifier", "detector")}


@pytest.mark.parametrize("value", [10**400, -1, float("inf"), None, "a\nb", [], {"a": 1}, ...], ids=str)
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_any_value_in_any_place_of_a_manifest_gives_a_reason_or_an_artifact(
    folders: dict[str, Path], kind: str, value: object
) -> None:
    places = len(every_place(json.loads((folders[kind] / "manifest.json").read_bytes())))
    for index in range(places):
        read_changed(folders[kind], [((index + 0.5) / places, value)])


@pytest.mark.parametrize("kind", ["classifier", "detector"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=changes())
def test_any_change_of_a_manifest_gives_a_reason_or_an_artifact(
    folders: dict[str, Path], kind: str, steps: list[tuple[float, object]]
) -> None:
    read_changed(folders[kind], steps)


def read_changed(folder: Path, steps: list[tuple[float, object]]) -> None:
    """Read an artifact with changes of its manifest; only an ArtifactError of one line may say no."""
    path = folder / "manifest.json"
    good = path.read_bytes()
    path.write_text(json.dumps(changed(json.loads(good), steps)))
    reason = ""
    try:
        read_artifact(path.parent)
    except ArtifactError as error:
        reason = str(error)
    finally:
        path.write_bytes(good)
    assert reason.isprintable()
