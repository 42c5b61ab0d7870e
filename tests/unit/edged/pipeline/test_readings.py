"""Labeled images choose between the readings of a file, on networks whose readings differ."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import ArchitectureError
from edged.models.architecture import Architecture
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.readings import choose_reading, decide
from edged.spec import Choice, InputSpec
from tests.support.readouts import fitted
from tests.support.tasks import Task
from tests.support.trained import CALIBRATION

SPEC = InputSpec(16, 16)
POOLED = Architecture("resnet18", 10, "small", stem_pooling=True)
V1 = Architecture("resnet50", 10, stride_in="1x1")


@pytest.fixture(scope="module")
def cache(task: Task, tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return build_cache(task.calibration, tmp_path_factory.mktemp("cache"), SPEC)


def saved(path: Path, architecture: Architecture, cache: ImageCache, labels: Tensor | None = None) -> Path:
    everything = torch.arange(len(cache))
    known = cache.labels_of(everything) if labels is None else labels
    assert known is not None
    torch.save(fitted(architecture, cache.batch(everything), known).state_dict(), path)
    return path


def loaded(path: Path, choice: Choice | None = None) -> LoadedNetwork:
    return load_checkpoint(path, input_settings={"size": SPEC.size, "resize": SPEC.resize}, choice=choice)


@pytest.mark.parametrize("true", [POOLED, Architecture("resnet18", 10, "small"), V1, Architecture("resnet50", 10)])
def test_the_reading_that_is_right_is_taken_and_named(true: Architecture, cache: ImageCache, tmp_path: Path) -> None:
    network = loaded(saved(tmp_path / "m.pt", true, cache))
    assert network.selection.assumptions
    chosen = choose_reading(network, cache)
    assert chosen.architecture == true
    found = chosen.selection.to_dict()["readings"]
    assert found["decided"]
    assert [entry["taken"] for entry in found["tried"]] == [reading == true for reading in network.readings]
    right = next(entry for entry in found["tried"] if entry["taken"])
    assert right["correct"] > 0.9 * found["images"]
    assert chosen.selection.assumptions == ()
    reference = load_checkpoint(
        tmp_path / "m.pt",
        choice=Choice(stem_pooling="auto" if true.stem_pooling is None else "true", stride_in=true.stride_in),
    )
    x = cache.batch(torch.arange(4))
    torch.testing.assert_close(chosen.model(x), reference.model(x))


def test_what_the_user_says_is_not_tried(cache: ImageCache, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", POOLED, cache)
    for answer in ("true", "false"):
        network = loaded(path, Choice(stem_pooling=answer))
        assert network.architecture.pools_stem == (answer == "true")
        assert choose_reading(network, cache) is network


def test_images_without_labels_leave_the_usual_reading(task: Task, cache: ImageCache, tmp_path: Path) -> None:
    network = loaded(saved(tmp_path / "m.pt", POOLED, cache))
    for index in range(*CALIBRATION.indices(64)):
        task.digits.png(index, tmp_path / "flat" / f"{index}.png")
    flat = build_cache(tmp_path / "flat", tmp_path / "cache", SPEC)
    assert choose_reading(network, flat) is network
    assert network.selection.to_dict()["assumptions"] == [
        "no max-pooling after the 3x3 stem; the tensors do not tell, stem_pooling sets it"
    ]


def test_chance_is_rejected_with_the_figures(cache: ImageCache, tmp_path: Path) -> None:
    labels = cache.labels_of(torch.arange(len(cache)))
    assert labels is not None
    moved = (labels + 1) % 10  # class folders in another order than the network's classes
    network = loaded(saved(tmp_path / "m.pt", POOLED, cache, moved))
    with pytest.raises(ArchitectureError, match=r"right on \d+ of \d+ labeled .* chance is 10\.\d %, .*stem_pooling"):
        choose_reading(network, cache)


def hits(*counts: int, images: int) -> Tensor:
    return torch.tensor([[index < count for index in range(images)] for count in counts])


@pytest.mark.parametrize(
    ("counts", "taken", "decided"),
    [
        ((60, 6), 0, True),
        ((6, 60), 1, True),
        ((30, 33), 0, False),  # three images decide nothing
        ((40, 40), 0, False),
        ((10, 60, 12, 11), 1, True),
        ((10, 60, 58, 11), 1, False),  # not which of the two, but not the usual one
    ],
)
def test_only_a_significant_difference_decides(counts: tuple[int, ...], taken: int, decided: bool) -> None:
    trial = decide(hits(*counts, images=64), 0.1)
    assert (trial.correct, trial.taken, trial.decided) == (counts, taken, decided)
