from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.errors import CalibrationError
from edged.evaluation.classification import Accuracy, accuracy, predict
from edged.progress import SilentListener
from edged.spec import InputSpec
from tests.support.pictures import write_folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder / "data", classes=4, images=10)
    return build_cache(folder / "data", folder / "caches", InputSpec(size=8, resize=8))


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_accuracy_counts_the_ranks_of_labels(classes: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # A permutation in each row: no ties, and every rank is known.
    logits = torch.stack([torch.randperm(classes, generator=generator) for _ in range(count)]).float()
    labels = torch.randint(0, classes, (count,), generator=generator)
    better = [sum(value > row[label] for value in row.tolist()) for row, label in zip(logits, labels, strict=True)]
    result = accuracy(logits, labels)
    assert result.images == count
    assert result.top1 == pytest.approx(100 * sum(rank < 1 for rank in better) / count)
    assert result.top5 == pytest.approx(100 * sum(rank < 5 for rank in better) / count)


def test_accuracy_is_in_percent() -> None:
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == Accuracy(75.0, 100.0, 4)


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (0, [], "cannot score 0 predictions against 0 labels"),
        (2, [0], "cannot score 2 predictions against 1 labels"),
        (1, [3], "label 3 has no logit: the model knows 3 classes"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(count: int, labels: list[int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        accuracy(torch.zeros(count, 3), torch.tensor(labels, dtype=torch.int64))


class Counted(SilentListener):
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def progress(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Dropout(), nn.Linear(216, 5))


def test_predict_is_the_eval_forward_pass_in_the_requested_order(cache: ImageCache) -> None:
    model = network()
    indices = torch.tensor([9, 0, 33, 5, 6])
    listener = Counted()
    logits = predict(model, cache, indices, batch_size=2, listener=listener)
    with torch.no_grad():
        expected = model.eval()(cache.batch(indices))
    torch.testing.assert_close(logits, expected)
    assert listener.seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_models_modes(cache: ImageCache, training: bool) -> None:
    model = network().train(training)
    model[3].eval()  # a module may be in another mode than the whole model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predict(model, cache, cache.held_out)
    assert [module.training for module in model] == [training, training, training, False, training]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_are_ordinary_tensors(cache: ImageCache) -> None:
    logits = predict(network(), cache, cache.held_out)
    weight = torch.ones(5, requires_grad=True)
    (logits * weight).sum().backward()
    assert weight.grad is not None


def test_a_model_without_parameters_runs_on_the_cpu(cache: ImageCache) -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    assert predict(Mean(), cache, cache.held_out).shape == (len(cache.held_out), 3)


def test_an_empty_selection_is_rejected(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no images to predict"):
        predict(network(), cache, torch.tensor([], dtype=torch.int64))
