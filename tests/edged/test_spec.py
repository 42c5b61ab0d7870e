from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import UsageError
from edged.spec import DetectionSpec, Fit, InputSpec, Method, Order, QuantSpec, Scheme, recipe

SPECS = st.builds(
    QuantSpec,
    method=st.sampled_from(Method),
    bits=st.integers(2, 8),
    scheme=st.sampled_from(Scheme),
    order=st.sampled_from(Order),
    propagation=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)


@given(SPECS)
def test_from_dict_inverts_to_dict(spec: QuantSpec):
    assert QuantSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"bits": 1}, "bits has value 1; choose 2 to 8"),
        ({"bits": 9}, "bits has value 9; choose 2 to 8"),
        ({"bit": 4}, "unknown quantization setting 'bit'; known: augmentation, bits, .*"),
        ({"order": "random"}, "order has value 'random'; choose one of sensitivity, error, weight, hessian, "),
        ({"method": "gptq"}, "method has value 'gptq'; choose one of fastobq, obq, rtn"),
    ],
)
def test_impossible_settings_are_named(data: dict, message: str):
    with pytest.raises(UsageError, match=message):
        QuantSpec.from_dict(data)


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
        ({"max_detections": 0}, "max_detections has value 0; choose at least 1"),
    ],
)
def test_impossible_detections_are_named(settings: dict, message: str):
    with pytest.raises(UsageError, match=message):
        DetectionSpec(**settings)


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
