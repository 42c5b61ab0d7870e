from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.models.names import ARCHITECTURES
from edged.spelling import closest, names_to_choose


@pytest.mark.parametrize(
    ("word", "meant"),
    [("resnet-18", "resnet18"), ("ResNet50", "resnet50"), ("yolo5n", "yolov5n"), ("CifarResNet20", "cifar_resnet20")],
)
def test_a_misspelled_architecture_is_recognized(word: str, meant: str) -> None:
    assert closest(word, ARCHITECTURES) == meant


def test_a_message_names_the_similar_name_and_all_names() -> None:
    assert names_to_choose("shlef", ["cam", "shelf"], "configured:") == "did you mean 'shelf'? configured: cam, shelf"
    assert names_to_choose("x", ["cam", "shelf"], "configured:") == "configured: cam, shelf"
    assert names_to_choose("x", [], "configured:") == "configured: none"


@given(st.text(max_size=20), st.lists(st.text(max_size=10), max_size=10))
def test_only_names_that_exist_are_suggested(word: str, known: list[str]) -> None:
    assert closest(word, known) in {None, *known}
