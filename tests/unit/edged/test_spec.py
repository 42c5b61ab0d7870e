from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import UsageError
from edged.spec import AUTO, DetectionSpec, Fit, InputSpec, Method, Order, QuantSpec, Scheme, recipe

SPECS = st.builds(
    QuantSpec,
    method=st.sampled_from(Method),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(Scheme),
    order=st.sampled_from(Order),
    propagation=st.floats(0, 1),
    beam=st.integers(1, 64),
    damp_ratio=st.floats(0, allow_infinity=False),
    seed=st.integers(0, 2**63 - 1),
)


@given(SPECS)
def test_from_dict_inverts_to_dict(spec: QuantSpec):
    assert QuantSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"bits": 1}, "bits has value 1; choose 2 to 8"),
        ({"bits": 9}, "bits has value 9; choose 2 to 8"),
        (
            {"bit": 4},
            "unknown quantization setting 'bit'; did you mean 'bits'. known: activation_bits, augm",
        ),
        ({"order": "random"}, "order has value 'random'; choose one of sensitivity, error, weight, hessian, "),
        ({"method": "gptq"}, "method has value 'gptq'; choose one of fastobq, obq, rtn"),
        ({"bits": True}, "bits has value True; choose 2 to 8"),
        ({"bits": None}, "bits has value None; choose 2 to 8"),
        ({"bits": "4"}, "bits has value '4'; choose 2 to 8"),
        ({"bits": "all"}, "bits has value 'all'; choose 2 to 8 or auto"),
        ({"bits": "auto"}, "bits is auto without a limit; give size_limit or max_drop, too"),
        ({"bits": "auto", "size_limit": 0}, "size_limit has value 0; choose a number from 1 on"),
        ({"bits": "auto", "max_drop": -0.1}, r"max_drop has value -0\.1; choose 0 to 100"),
        ({"bits": 3, "size_limit": 9}, "size_limit is for bits auto, and bits has value 3; give bits auto, or drop it"),
        ({"max_drop": 0.3}, "max_drop is for bits auto, and bits has value 4"),
        (
            {"bits": "auto", "size_limit": 9, "cluster_affine": True},
            "cluster_affine adds bytes that size_limit does not count; leave one of them out",
        ),
        ({"first_bits": 1}, "first_bits has value 1; choose 2 to 8"),
        ({"last_bits": 4.0}, "last_bits has value 4.0; choose 2 to 8"),
        ({"beam": 0}, "beam has value 0; choose 1 to 64"),
        ({"beam": 65}, "beam has value 65; choose 1 to 64"),
        ({"descent_passes": -1}, "descent_passes has value -1; choose a number from 0 on"),
        ({"block_size": 0}, "block_size has value 0; choose a number from 1 on"),
        ({"augmentation": 0}, "augmentation has value 0; choose a number from 1 on"),
        ({"augmentation": 1.5}, r"augmentation has value 1\.5; choose a number from 1 on"),
        ({"seed": -1}, "seed has value -1; choose a number from 0 on"),
        ({"seed": 2**63}, "seed has value 9223372036854775808; choose a number from 0 on"),
        ({"seed": 0.0}, r"seed has value 0\.0; choose a number from 0 on"),
        ({"damp_ratio": -0.1}, r"damp_ratio has value -0\.1; choose a number from 0 on"),
        ({"damp_ratio": float("inf")}, "damp_ratio has value inf; choose a number from 0 on"),
        ({"damp_ratio": float("nan")}, "damp_ratio has value nan; choose a number from 0 on"),
        ({"damp_absolute": -1}, "damp_absolute has value -1; choose a number from 0 on"),
        ({"damp_absolute": "0.1"}, r"damp_absolute has value '0\.1'; choose a number from 0 on"),
        ({"propagation": 1.01}, r"propagation has value 1\.01; choose 0 to 1"),
        ({"propagation": -0.01}, r"propagation has value -0\.01; choose 0 to 1"),
    ],
)
def test_impossible_settings_are_named(data: dict, message: str):
    with pytest.raises(UsageError, match=message):
        QuantSpec.from_dict(data)


def test_bits_of_their_own_leave_those_of_small_layers_open():
    spec = QuantSpec(bits=AUTO, size_limit=1000, activation_bits=8)
    assert (spec.uniform_bits, spec.bits_of_small_layers) == (None, None)
    assert dataclasses.replace(spec, small_bits=6).bits_of_small_layers == 6
    assert QuantSpec(bits=3, activation_bits=8).bits_of_small_layers == 7


def test_every_number_is_bounded():
    # A new numeric field without a bound would be passed on unchecked.
    for name, value in QuantSpec().to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            with pytest.raises(UsageError, match=f"{name} has value -1"):
                QuantSpec.from_dict({name: -1})


def test_a_recipe_is_a_spec_with_its_name_and_overrides_win():
    assert recipe("balanced") == QuantSpec()
    assert recipe("fast", bits=2, order=None).propagation == 0
    assert recipe("paper", damp_absolute=0.5).damp_absolute == 0.5
    with pytest.raises(UsageError, match="recipe has value 'slow'; choose one of fast, balanced, best, paper"):
        recipe("slow")


def test_input_spec_round_trip():
    spec = InputSpec(32, 36, (0.5,), (0.25,))
    assert InputSpec.from_dict(spec.to_dict()) == spec
    assert spec.channels == 1


def test_how_an_image_fits_is_part_of_the_input():
    spec = InputSpec(640, 640, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
    assert InputSpec.from_dict(spec.to_dict()) == spec
    before = {key: value for key, value in InputSpec().to_dict().items() if key != "fit"}
    assert InputSpec.from_dict(before) == InputSpec()
    with pytest.raises(UsageError, match="input fit has value 'stretch'; choose crop or letterbox"):
        InputSpec.from_dict(before | {"fit": "stretch"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"confidence": 1.1}, "confidence has value 1.1; choose 0 to 1"),
        ({"iou": -0.1}, "iou has value -0.1; choose 0 to 1"),
        ({"iou": True}, "iou has value True; choose 0 to 1"),
        ({"confidence": "high"}, "confidence has value 'high'; choose 0 to 1"),
        ({"confidence": float("nan")}, "confidence has value nan; choose 0 to 1"),
        ({"max_detections": 0}, "max_detections has value 0; choose 1 to 1000"),
        ({"max_detections": 1001}, "max_detections has value 1001; choose 1 to 1000"),
        ({"max_detections": 1.5}, "max_detections has value 1.5; choose 1 to 1000"),
        ({"multi_label": 1}, "multi_label has value 1; choose true or false"),
        ({"nms": 0.5}, "unknown detection setting 'nms'; known: confidence, iou, max_detections, multi_label"),
    ],
)
def test_impossible_detections_are_named(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        DetectionSpec.from_dict(settings)


def test_thresholds_survive_as_json():
    spec = DetectionSpec(0.5, 0.3, 20, multi_label=True)
    assert DetectionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert DetectionSpec.from_dict({"iou": 0.3}) == DetectionSpec(iou=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((224, 200), "input size 224 with resize 200"),
        ((0, 10), "input size 0"),
        ((8, 8, (0.5,), (0.2, 0.2, 0.2)), "mean has 1 and std 3 values"),
        ((8, 8, (0.5,), (0.0,)), "std has value"),
    ],
)
def test_impossible_inputs_are_named(arguments: tuple, message: str):
    with pytest.raises(UsageError, match=message):
        InputSpec(*arguments)


def test_overrides_replace_what_the_architecture_says() -> None:
    spec = InputSpec().override({"size": 128, "resize": 144, "mean": None, "std": (1.0, 1.0, 1.0)})
    assert spec == InputSpec(128, 144, InputSpec().mean, (1.0, 1.0, 1.0))


def test_a_size_alone_keeps_the_share_that_is_cropped() -> None:
    assert InputSpec().override({"size": 112}) == InputSpec(112, 128)
    assert InputSpec(32, 32).override({"size": 16}) == InputSpec(16, 16)


def test_a_letterbox_has_a_size_and_nothing_to_crop() -> None:
    letterbox = InputSpec.letterbox(640)
    assert letterbox.override({"size": 320}) == InputSpec(320, 320, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)
    for overrides in ({"resize": 700}, {"size": 320, "resize": 360}):
        with pytest.raises(UsageError, match=f"input resize has value {overrides['resize']}; a detector's images are"):
            letterbox.override(overrides)


@pytest.mark.parametrize("overrides", [{"sise": 3}, {"size": 0}, {"size": 64, "resize": 32}, {"std": [0, 1, 1]}])
def test_impossible_overrides(overrides: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        InputSpec().override(overrides)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "levels has value power, and method fastobq; give method requant, too"),
        ({"method": "rtn"}, "and method rtn"),
        ({"method": "requant", "activation_bits": 8}, "which no engine computes on integers, and activation_bits 8"),
        ({"method": "requant", "bits": "auto", "size_limit": 9}, "levels power adds bytes that size_limit does not"),
    ],
)
def test_power_levels_are_for_requant_and_for_storage(fields: dict, message: str):
    with pytest.raises(UsageError, match=message):
        recipe("balanced", levels="power", **fields)
    spec = recipe("balanced", method="requant", levels="power", activation_bits="auto")
    assert not spec.quantizes_activations
    assert QuantSpec.from_dict(spec.to_dict()) == spec
