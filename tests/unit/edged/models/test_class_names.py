import pytest
import torch

from edged.models.class_names import MAX_CLASSES, find_class_names

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "tree",
    [
        {"classes": list(NAMES)},
        {"meta": {"CLASSES": NAMES}},
        {"meta": {"dataset_meta": {"classes": NAMES}}},
        {"model": {}, "vocab": list(NAMES)},
        {"class_to_idx": {"owl": 2, "cat": 0, "dog": 1}},
        {"idx_to_class": {2: "owl", 0: "cat", 1: "dog"}},
        {"config": {"id2label": {"0": "cat", "1": "dog", "2": "owl"}}},
        {"classes": list(NAMES), "class_to_idx": {"cat": 0, "dog": 1, "owl": 2}},
        {"names": dict(enumerate(NAMES)), "classes": 3},
    ],
)
def test_names_are_found_in_the_order_of_the_classes(tree):
    assert find_class_names({"state_dict": {"fc.weight": torch.zeros(3, 4)}, **tree}) == (NAMES,)


@pytest.mark.parametrize(
    "value",
    [
        [],
        "cat",
        ["cat", 3],
        ["cat", "\x1b[31m"],
        ["x" * 101],
        [""],
        {"cat": 0, "dog": 2},
        {"0": "cat", "2": "dog"},
        {0: "cat", "0": "dog"},
        {"9" * 5000: "cat"},
        ["a"] * (MAX_CLASSES + 1),
    ],
)
@pytest.mark.parametrize("key", ["classes", "class_to_idx", "id2label"])
def test_other_values_are_no_names(key, value):
    assert find_class_names({key: value}) == ()


def test_two_different_lists_are_both_returned_and_cycles_end():
    tree = {"classes": ["a"], "meta": {"labels": ["b"]}}
    tree["meta"]["tree"] = tree
    assert find_class_names(tree) == (("a",), ("b",))
    assert find_class_names([1]) == ()
