import json
from dataclasses import replace

import pytest

from edged.artifacts.store import ModelStore
from edged.models.architecture import Architecture
from service.worker.interface import CHECKPOINT, FOLDERS, Incumbent, Interface
from tests.support import scenes
from tests.support.artifacts import write_untrained

CATS = Interface("resnet18", "classification", 3, ("cat", "dog", "eel"), 3, 224)
BOXES = Interface("yolov5n", "detection", 3, ("cat", "dog", "eel"), 3, 640, 25200)


def test_a_detector_is_known_by_its_predictions():
    architecture = Architecture.detector(scenes.plan())
    small, large = (Interface.of(architecture.to_dict(), side, None) for side in (64, 128))
    assert (small.task, small.classes, small.names) == ("detection", 3, scenes.NAMES)
    assert large.predictions == 4 * small.predictions


def test_a_manifest_gives_the_interface_that_its_checkpoint_has(tmp_path):
    write_untrained(tmp_path / "artifact")
    store = ModelStore(tmp_path / "models")
    manifest = store.manifest("digits", store.publish("digits", tmp_path / "artifact"))
    assert Interface.of_manifest(manifest) == Interface.of(
        Architecture("cifar_resnet20", 10, "cifar", 3, "pad").to_dict(), 8, None, FOLDERS
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"architecture": "resnet50"}, None),
        ({"classes": 100, "names": None}, "has 100 classes, generation 2 has 3"),
        ({"size": 128}, "reads images of 3x128x128, generation 2 reads 3x224x224"),
        ({"channels": 1}, "reads images of 1x224x224, generation 2 reads 3x224x224"),
        ({"predictions": 7}, "has 7 predictions an image, generation 2 has 0"),
    ],
)
def test_the_first_difference_of_the_tensors_is_named(changed, message):
    assert replace(CATS, **changed).difference(CATS, "generation 2") == message


def test_another_task_is_named_before_all_else():
    assert BOXES.difference(CATS, "generation 2") == "is a detector (yolov5n), generation 2 is a classifier"
    assert CATS.difference(BOXES, "generation 2") == "is a classifier (resnet18), generation 2 is a detector"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "dog", "eel"), None),
        (None, None),
        (("cat", "dog", "fox"), "calls class 2 'fox', generation 2 calls it 'eel'"),
        (("dog", "cat", "eel"), "calls class 0 'dog', generation 2 calls it 'cat' and 1 more differ"),
    ],
)
def test_renamed_classes_are_named(names, message):
    renamed = replace(CATS, names=names)
    assert renamed.difference(CATS, "generation 2") is None
    assert renamed.renaming(CATS, "generation 2") == message


def test_names_of_another_origin_are_not_compared():
    coded = replace(CATS, names=("n01", "n02", "n03"), named_by=FOLDERS)
    assert coded.renaming(CATS, "generation 2") is None
    assert replace(coded, named_by=CHECKPOINT).renaming(CATS, "generation 2") is not None


@pytest.mark.parametrize(
    ("calibration", "named_by"),
    [({}, FOLDERS), ({"names_classes": True}, FOLDERS), ({"names_classes": False}, CHECKPOINT)],
)
def test_a_manifest_says_where_its_names_are_from(calibration, named_by):
    manifest = {
        "classes": ["a"] * 10,
        "architecture": Architecture("cifar_resnet20", 10, "cifar", 3, "pad").to_dict(),
        "input": {"size": 8},
        "calibration": calibration,
    }
    assert Interface.of_manifest(manifest).named_by == named_by


@pytest.mark.parametrize("interface", [CATS, BOXES, replace(CATS, names=None)])
def test_it_goes_through_json(interface):
    incumbent = Incumbent(7, interface)
    assert Incumbent.from_dict(json.loads(json.dumps(incumbent.to_dict()))) == incumbent
