import pytest

from edged.evaluation.class_names import name_difference


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        (["cat", "dog"], ["cat", "dog"], None),
        (["Traffic Light", "dog"], ["traffic_light", "Dog"], None),
        (["cat", "dog"], ["cat"], "2 names and 1"),
        (
            ["cat", "dog", "cow"],
            ["cat", "cow", "dog"],
            "2 of 3 names, in another order: class 1 is 'dog' and 'cow', class",
        ),
        (["cat", "dog"], ["cat", "bird"], "1 of 2 names: class 1 is 'dog' and 'bird'"),
        (
            [*"abcdef"],
            [*"ghijkl"],
            "6 of 6 names: class 0 is 'a' and 'g', class 1 is 'b' and 'h', class 2 is 'c' and 'i', ...",
        ),
    ],
)
def test_names_are_compared_by_class(ours, theirs, difference):
    found = name_difference(ours, theirs)
    assert found == difference or found.startswith(difference)
