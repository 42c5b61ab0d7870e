"""Accuracy or mAP of a checkpoint on labeled images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from edged.calibration.dataset import build_cache
from edged.calibration.places import EVALUATE
from edged.errors import ArtifactError, UnavailableError, UsageError
from edged.models.loading import load_checkpoint
from edged.pipeline.quantize import quantize
from edged.pipeline.scoring import Scorable, open_scorable, score
from edged.progress import SilentListener
from edged.spec import InputSpec, Method, QuantSpec
from tests.support import scenes
from tests.support.tasks import DetectionTask, Task


def test_a_classifier_is_scored_by_top1_and_top5(task: Task, tmp_path: Path) -> None:
    network = open_scorable(task.first, None, {"size": 8, "resize": 8})
    result = score(network, build_cache(task.test, tmp_path, network.input), task.test, SilentListener())
    assert result["top5"] >= result["top1"] > 95
    assert (result["task"], result["images"], result["classes"]) == ("classification", 297, 10)


def test_a_detector_is_scored_by_map(detection_task: DetectionTask, tmp_path: Path) -> None:
    network = open_scorable(detection_task.first, "yolov5", {"size": scenes.SIDE})
    cache = build_cache(detection_task.test, tmp_path, network.input)
    result = score(network, cache, detection_task.test, SilentListener())
    assert result["map50"] > 50
    assert (result["task"], result["images"]) == ("detection", 40)


def test_an_artifact_is_scored_in_the_engine_that_serves_it(task: Task, tmp_path: Path) -> None:
    spec = QuantSpec(method=Method.RTN, bits=6, activation_bits=8)
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    quantize(network, task.calibration, tmp_path / "out", spec, images=64)
    cache = build_cache(task.test, tmp_path / "cache", network.input)
    found = {}
    for runtime in ("auto", "onnxruntime", "torch"):
        scorable = open_scorable(tmp_path / "out", None, {}, runtime=runtime)
        found[runtime] = score(scorable, cache, task.test, SilentListener())
    assert [each["engine"] for each in found.values()] == ["onnxruntime", "onnxruntime", "torch"]
    assert {each["precision"] for each in found.values()} == {"integer"}
    assert found["auto"]["top1"] == found["onnxruntime"]["top1"] > 95
    assert abs(found["auto"]["top1"] - found["torch"]["top1"]) < 1
    assert open_scorable(tmp_path / "out", None, {"size": 12, "resize": 12}).engine == "torch"
    with pytest.raises(UsageError, match="computes images of 8 pixels only"):
        open_scorable(tmp_path / "out", None, {"size": 12, "resize": 12}, runtime="onnxruntime")


def test_a_damaged_or_missing_model_is_written_again_from_the_codes(task: Task, tmp_path: Path) -> None:
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    quantize(network, task.calibration, tmp_path / "out", QuantSpec(method=Method.RTN), images=64)
    model, manifest = tmp_path / "out" / "model.onnx", tmp_path / "out" / "manifest.json"
    judged = model.read_bytes()
    for damage in (lambda: model.write_bytes(b"damaged"), model.unlink):
        damage()
        assert open_scorable(tmp_path / "out", None, {}, runtime="onnxruntime").engine == "onnxruntime"
        assert model.read_bytes() == judged
    # model.onnx is what is computed: one that is not what was judged takes no part.
    known = json.loads(manifest.read_text())
    known["onnx"]["sha256"] = "ab" * 32
    manifest.write_text(json.dumps(known))
    with pytest.raises(ArtifactError, match=r"its codes give other bytes than .*model\.onnx had.*quantize"):
        open_scorable(tmp_path / "out", None, {}, runtime="onnxruntime")


def test_tensorrt_does_not_score_what_is_not_written_for_it(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    quantize(network, task.calibration, tmp_path / "out", QuantSpec(method=Method.RTN), images=64)
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("onnxruntime", "torch"))
    with pytest.raises(UnavailableError, match="runtime is tensorrt, which is not installed here"):
        open_scorable(tmp_path / "out", None, {}, runtime="tensorrt")
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("onnxruntime", "torch", "tensorrt"))
    with pytest.raises(UsageError, match="is not written for it; leave it out, or quantize the checkpoint again with"):
        open_scorable(tmp_path / "out", None, {}, runtime="tensorrt")


def test_an_engine_that_is_missing_cannot_score(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    quantize(network, task.calibration, tmp_path / "out", QuantSpec(method=Method.RTN), images=64)
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("onnxruntime", "torch"))
    with pytest.raises(UnavailableError, match="runtime is openvino, which is not installed here; install") as missing:
        open_scorable(tmp_path / "out", None, {}, runtime="openvino")
    assert missing.value.exit_code == 69
    with pytest.raises(UsageError, match="is no artifact; torch computes checkpoints"):
        open_scorable(task.first, None, {}, runtime="onnxruntime")


def test_images_without_labels_cannot_score_a_detector(detection_task: DetectionTask, tmp_path: Path) -> None:
    bare = scenes.write_scenes(tmp_path / "bare", range(40), labels=False)
    network = open_scorable(detection_task.first, None, {"size": scenes.SIDE})
    with pytest.raises(UsageError, match="has no label files"):
        score(network, build_cache(bare, tmp_path / "cache", network.input), bare, SilentListener())


DIGITS = InputSpec(8, 8, (0.4, 0.5, 0.6), (0.25, 0.25, 0.25))
DIGIT_OPTIONS = {"size": 8, "resize": 8, "mean": [0.4, 0.5, 0.6], "std": [0.25, 0.25, 0.25]}


def measured(network: Scorable, data: Path, folder: Path) -> dict[str, Any]:
    cache = build_cache(data, folder / "cache", network.input, split=EVALUATE)
    return score(network, cache, data, SilentListener())


@pytest.fixture(scope="module")
def artifact(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the digits whose preparation is not the default."""
    out = tmp_path_factory.mktemp("artifact") / "out"
    network = load_checkpoint(task.first, input_settings=DIGIT_OPTIONS)
    quantize(network, task.calibration, out, QuantSpec(bits=4), images=64)
    return out


def test_a_checkpoint_with_defaults_says_so_and_how_to_compare(task: Task, tmp_path: Path) -> None:
    network = open_scorable(task.first, None, {})
    assert (network.input, network.input_from) == (InputSpec(32, 32), "the default of cifar_resnet20")
    [warning] = network.warnings
    assert "the images were prepared by default" in warning
    assert "--preprocessing-of ARTIFACT" in warning


def test_the_preprocessing_of_an_artifact_makes_two_results_comparable(
    task: Task, artifact: Path, tmp_path: Path
) -> None:
    quantized = open_scorable(artifact, None, {})
    assert (quantized.input, quantized.input_from) == (DIGITS, "the artifact")
    [warning] = quantized.warnings
    assert f"evaluate that with --preprocessing-of {artifact}" in warning
    full = open_scorable(task.first, None, {}, None, artifact)
    assert (full.input, full.input_from, full.warnings) == (DIGITS, f"the artifact {artifact}", ())
    default = open_scorable(task.first, None, {"size": 8, "resize": 8})
    assert default.input_from == "--input-size, --resize, otherwise the default of cifar_resnet20"
    keys = [measured(network, task.test, tmp_path)["comparison_key"] for network in (quantized, full, default)]
    assert keys[0] == keys[1] != keys[2]
    smaller = shutil.copytree(task.test, tmp_path / "smaller")
    next((smaller / "3").iterdir()).unlink()
    assert measured(full, smaller, tmp_path)["comparison_key"] != keys[1]


def test_an_artifact_with_another_preprocessing_than_its_own_is_warned_of(artifact: Path) -> None:
    network = open_scorable(artifact, None, {"mean": [0.1, 0.1, 0.1]})
    assert network.input_from == "--mean, otherwise the artifact"
    [warning] = network.warnings
    assert "shorter side to 8, then the central 8 pixels; mean 0.4, 0.5, 0.6; std 0.25, 0.25, 0.25" in warning


def test_an_artifact_of_another_checkpoint_is_warned_of(task: Task, artifact: Path) -> None:
    network = open_scorable(task.second, None, {}, None, artifact)
    [warning] = network.warnings
    assert f"{artifact} was not made of this checkpoint, but of '{task.first.name}' (sha256 " in warning


def test_class_folders_with_other_names_are_warned_of(task: Task, artifact: Path, tmp_path: Path) -> None:
    renamed = shutil.copytree(task.test, tmp_path / "renamed")
    assert measured(open_scorable(artifact, None, {}), renamed, tmp_path)["warnings"][1:] == []
    (renamed / "9").rename(renamed / "nine")
    full = open_scorable(task.first, None, {}, None, artifact)
    for network in (open_scorable(artifact, None, {}), full):
        found = measured(network, renamed, tmp_path)["warnings"]
        assert found[-1] == (
            f"the model and {renamed} differ in class names, in this order: 1 of 10 names: class 9 is '9' and 'nine'"
        )


def test_a_data_yaml_is_measured_on_its_val(detection_task: DetectionTask, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(detection_task.calibration, data / "train")
    shutil.copytree(detection_task.test, data / "val")
    names = dict(enumerate(scenes.NAMES))
    place = data / "data.yaml"
    place.write_text(yaml.safe_dump({"path": ".", "train": "train/images", "val": "val/images", "names": names}))
    network = open_scorable(detection_task.first, None, {"size": scenes.SIDE})
    plain, named = measured(network, detection_task.test / "images", tmp_path), measured(network, place, tmp_path)
    assert (plain["split"], named["split"]) == (None, "val")
    assert named | {"split": None} == plain
    place.write_text(yaml.safe_dump({"val": "val/images", "names": [*scenes.NAMES[:2], "other"]}))
    [warning] = measured(network, place, tmp_path)["warnings"]
    assert f"1 of 3 names: class 2 is {scenes.NAMES[2]!r} and 'other'" in warning


def test_images_of_a_list_that_do_not_exist_are_counted(detection_task: DetectionTask, tmp_path: Path) -> None:
    images = sorted((detection_task.test / "images").iterdir())
    (tmp_path / "val.txt").write_text("\n".join([*map(str, images), "gone.png", "lost.png"]))
    network = open_scorable(detection_task.first, None, {"size": scenes.SIDE})
    result = measured(network, tmp_path / "val.txt", tmp_path)
    assert (result["images"], result["skipped"]) == (40, 1)
    [skipped] = result["skipped_images"]
    assert skipped == {
        "path": "val.txt",
        "reason": "names 2 of 42 images that do not exist: 'gone.png', 'lost.png'",
    }


def test_one_bad_line_leaves_its_image_out_of_the_score(detection_task: DetectionTask, tmp_path: Path) -> None:
    data = shutil.copytree(detection_task.test, tmp_path / "data")
    bad = min((data / "labels").iterdir())
    bad.write_text("0 0.5 0.5 0.1 0.1\n0 0.5\n")
    network = open_scorable(detection_task.first, None, {"size": scenes.SIDE})
    result = measured(network, data, tmp_path)
    assert (result["images"], measured(network, detection_task.test, tmp_path)["images"]) == (39, 40)
    bad.write_text("8 0.5 0.5 0.1 0.1")  # a class that the model lacks, in one of 40 images
    assert measured(network, data, tmp_path)["images"] == 39
    for path in sorted((data / "labels").iterdir())[:10]:
        path.write_text("8 0.5 0.5 0.1 0.1")
    with pytest.raises(UsageError, match=r"10 boxes in 10 files of classes that the model lacks.*class 8 in labels/"):
        measured(network, data, tmp_path)
