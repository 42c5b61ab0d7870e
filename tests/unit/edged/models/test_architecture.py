import json

import pytest

from edged.errors import ArchitectureError, UsageError
from edged.models.architecture import Architecture
from edged.models.yolov5.plan import Plan, parse_anchors, parse_rows
from edged.models.yolov5.standard import SIZES, standard
from edged.spec import Fit, InputSpec
from tests.support.yolov5_samples import tiny_plan


@pytest.mark.parametrize("size", SIZES)
def test_detectors_survive_json(size):
    architecture = Architecture.detector(standard(size, ("a", "b")))
    assert architecture.name == f"yolov5{size}"
    assert (architecture.task, architecture.num_classes, architecture.in_channels) == ("detection", 2, 3)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


def test_a_classifier_has_no_plan_in_its_json():
    assert Architecture("resnet18", 3).to_dict() == {
        "name": "resnet18",
        "num_classes": 3,
        "stem": "imagenet",
        "in_channels": 3,
        "shortcut": "projection",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet18"}, "name has value 'resnet18'; resnet18 takes yolov5"),
        ({"name": "yolov5n"}, "name has value 'yolov5n'; yolov5n takes yolov5"),
        ({"num_classes": 4}, "num_classes has value 4; it must be 3"),
        ({"stem": "imagenet"}, "stem has value 'imagenet'"),
        ({"plan": 3}, "'plan' has value 3; it must be an object"),
        ({"plan": {}}, "detector has a missing or unknown key"),
        ({"plan": None}, "name has value 'yolov5'"),
    ],
)
def test_impossible_detectors_are_refused(change, message):
    data = Architecture.detector(tiny_plan()).to_dict() | change
    with pytest.raises(ArchitectureError, match=message):
        Architecture.from_dict(data)


@pytest.mark.parametrize(("size", "side"), [("n", 640), ("n6", 1280)])
def test_detectors_see_letterboxes(size, side):
    spec = Architecture.detector(standard(size, ("a",))).default_input
    assert spec == InputSpec(side, side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), Fit.LETTERBOX)
    assert InputSpec.from_dict(spec.to_dict()) == spec


def four_levels(steps: int) -> Plan:
    """Return a plan of four levels, the first of stride 2 * `steps`, the others of twice the stride each."""
    rows = [
        [-1, 1, "Conv", [16, 6, 2, 2]],
        [-1, 1, "Conv", [16, 3, steps]],
        *([-1, 1, "Conv", [16, 3, 2]] for _ in range(3)),
        [[1, 2, 3, 4], 1, "Detect", ["nc", "anchors"]],
    ]
    return Plan(1.0, 1.0, parse_rows(rows), parse_anchors([[[10.0, 13.0]]] * 4), ("a",))


@pytest.mark.parametrize(("steps", "strides", "side"), [(2, (4, 8, 16, 32), 640), (4, (8, 16, 32, 64), 1280)])
def test_the_largest_stride_and_not_the_number_of_levels_decides_the_side(steps, strides, side):
    architecture = Architecture.detector(four_levels(steps))
    assert architecture.plan.strides() == strides
    assert architecture.default_input.size == side


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            InputSpec(630, 630, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX),
            "size has value 630; yolov5n needs a multiple of 32",
        ),
        (InputSpec(640, 640, (0.0,) * 3, (1.0,) * 3), "fit has value 'crop'; yolov5n needs 'letterbox'"),
        (InputSpec(640, 640, (0.0,), (1.0,), Fit.LETTERBOX), "1 values, yolov5n reads 3 channels"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(spec, message):
    architecture = Architecture.detector(standard("n", ("a",)))
    architecture.check_input(architecture.default_input)
    with pytest.raises(UsageError, match=message):
        architecture.check_input(spec)


def test_classifiers_take_any_size():
    Architecture("resnet18", 3).check_input(InputSpec(99, 99))
    with pytest.raises(UsageError, match="reads 3 channels"):
        Architecture("resnet18", 3).check_input(InputSpec(99, 99, (0.5,), (0.5,)))
