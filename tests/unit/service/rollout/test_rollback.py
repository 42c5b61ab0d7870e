"""Whether a generation fits what is configured and in service. Rollbacks themselves: end_to_end/test_update.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.errors import GateError
from service.config.load import CalibrationConfig, DetectionConfig, InputConfig, ModelConfig
from service.rollout.rollback import Misfit, _against_config, _refuse_another_interface
from service.worker.interface import Interface

CLASSIFIER = Interface("resnet18", "classification", 10, None, 3, 128)
DETECTOR = Interface("yolov5n", "detection", 3, ("a", "b", "c"), 3, 640, 25200)


def model(**settings: object) -> ModelConfig:
    return ModelConfig(name="m", calibration=CalibrationConfig(dir=Path("images")), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interface", "settings", "found"),
    [
        (CLASSIFIER, {}, []),
        (CLASSIFIER, {"arch": "resnet18", "input": InputConfig(size=128)}, []),
        (CLASSIFIER, {"arch": "resnet50"}, ["is a resnet18, arch is resnet50"]),
        (DETECTOR, {"arch": "yolov5"}, []),
        (CLASSIFIER, {"arch": "yolov5"}, ["is a resnet18, arch is yolov5"]),
        (
            CLASSIFIER,
            {"detection": DetectionConfig(iou=0.3), "input": InputConfig(size=224)},
            [
                "is a classifier (resnet18), the section detection is for detectors",
                "reads images of 128 pixels, input.size is 224",
            ],
        ),
        (DETECTOR, {"detection": DetectionConfig(iou=0.3)}, []),
    ],
)
def test_the_config_of_now_is_compared(interface: Interface, settings: dict[str, object], found: list[str]) -> None:
    assert list(_against_config(interface, model(**settings))) == found


def test_only_another_interface_is_refused() -> None:
    _refuse_another_interface([Misfit("generation 1 is a resnet18, arch is resnet50")], "m", 1)
    with pytest.raises(GateError, match=r"^generation 1 has 10 classes; .*`edged rollback m --to 1`"):
        _refuse_another_interface([Misfit("generation 1 has 10 classes", of_interface=True)], "m", 1)
