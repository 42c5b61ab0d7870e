import pytest

from edged.models.head_layers import likely_head, matching_layers, stored_layers

TWO = {"fc.0.weight": (256, 512), "fc.0.bias": (256,), "fc.3.weight": (10, 256), "fc.3.bias": (10,)}
NORM = {"weight": (1024,), "bias": (1024,), "running_mean": (1024,), "running_var": (1024,), "num_batches_tracked": ()}
FASTAI = {
    **{f"1.2.{member}": shape for member, shape in NORM.items()},
    "1.4.weight": (512, 1024),
    **{f"1.6.{member}": (512,) if shape else () for member, shape in NORM.items()},
    "1.8.weight": (10, 512),
}


def described(shapes):
    return [str(layer) for layer in stored_layers(shapes, shapes)]


def test_layers_are_found_with_their_widths():
    assert described(TWO) == ["linear 512 -> 256 at 'fc.0'", "linear 256 -> 10 at 'fc.3'"]
    assert described(FASTAI) == [
        "batchnorm 1024 at '1.2'",
        "linear 1024 -> 512 at '1.4'",
        "batchnorm 512 at '1.6'",
        "linear 512 -> 10 at '1.8'",
    ]


@pytest.mark.parametrize(
    "shapes", [{"a.weight": (3, 3, 1, 1)}, {"a.weight": (5,), "a.bias": (5,)}, {"a.weight": (5, 5), "a.other": (5,)}]
)
def test_other_layers_are_not_found(shapes):
    assert described(shapes) == []


@pytest.mark.parametrize(
    ("shapes", "words", "numbers"),
    [
        (TWO, ("linear", "relu", "linear"), [0, 2]),
        (TWO, ("linear", "linear"), [0, 1]),
        (TWO, ("linear", "relu", "batchnorm", "linear"), []),
        (TWO, ("linear", "relu", "linear", "relu", "linear"), []),
        (TWO, ("concat_pool", "linear", "relu", "linear"), []),
        (FASTAI, ("concat_pool", "batchnorm", "linear", "relu", "batchnorm", "linear"), [0, 1, 3, 4]),
        (FASTAI, ("batchnorm", "linear", "relu", "batchnorm", "linear"), []),
        (dict(reversed(TWO.items())), ("linear", "relu", "linear"), [0, 2]),  # safetensors sorts by name or size
    ],
)
def test_a_description_matches_layers_that_follow_each_other(shapes, words, numbers):
    found = matching_layers(stored_layers(shapes, shapes), words, 512)
    assert [number for number, _ in found] == numbers


def test_numbers_in_names_are_sorted_by_value():
    shapes = {"fc.10.weight": (10, 64), "fc.9.weight": (64, 512)}
    found = matching_layers(stored_layers(shapes, shapes), ("linear", "linear"), 512)
    assert [layer.name for _, layer in found] == ["fc.9", "fc.10"]


def test_the_likely_head_is_a_description():
    assert likely_head(stored_layers(TWO, TWO), 512) == ["linear", "relu", "linear"]
    assert likely_head(stored_layers(FASTAI, FASTAI), 512) == [
        *("concat_pool", "batchnorm", "linear", "relu", "batchnorm", "linear")
    ]
    assert likely_head(stored_layers(TWO, ["fc.3.weight", "fc.0.weight"]), 512) == []
    assert likely_head([], 512) == []
