"""Which images a report shows, and whether what it says of them is what the networks say."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edged.calibration.dataset import build_cache
from edged.compress import Compressed, compress
from edged.evaluation.classification import predict
from edged.evaluation.detection import detect_all
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import Architecture, load_model, recognize
from edged.pipeline.evaluation import evaluate, held_out_labels
from edged.spec import DetectionSpec, InputSpec, Method, QuantSpec
from service.worker import predictions
from service.worker.predictions import choose, sample_predictions
from tests.support import scenes, trained
from tests.support.tasks import DetectionTask, Task

SERVED = DetectionSpec(confidence=0.1)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=30), st.integers(0, 12))
def test_half_of_the_images_differ_most_and_none_is_chosen_twice(differences: list[float], count: int) -> None:
    chosen = choose(torch.tensor(differences), count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(differences))
    worst = sorted(filter(None, differences), reverse=True)[: count // 2]
    assert sorted((differences[index] for index in chosen), reverse=True)[: len(worst)] == worst


def compressed_of(
    path: Any, folder: Any, cache_root: Any, spec: InputSpec, bits: int
) -> tuple[Compressed, Architecture]:
    checkpoint = read_checkpoint(path)
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    cache = build_cache(folder, cache_root, spec)
    quantization = QuantSpec(method=Method.RTN, bits=bits)
    return compress(load_model(checkpoint.state, architecture), cache, quantization), architecture


@pytest.fixture(scope="module")
def classifier(task: Task, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Architecture]:
    return compressed_of(task.first, task.calibration, tmp_path_factory.mktemp("c"), trained.INPUT, 3)


def picture_of(entry: dict[str, Any]) -> Image.Image:
    head, _, data = entry["picture"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_a_classifier(classifier: tuple[Compressed, Architecture], task: Task) -> None:
    compressed, architecture = classifier
    cache = compressed.cache
    labels = held_out_labels(cache, architecture)
    sampled = sample_predictions(compressed, architecture, labels, None, 6)
    assert (sampled["task"], len(sampled["images"])) == ("classification", 6)
    for entry in sampled["images"]:
        index = cache.files.index(entry["file"])
        assert index in cache.held_out.tolist()
        pixels = np.asarray(picture_of(entry)).transpose(2, 0, 1)
        assert (pixels == cache.images[index]).all()  # small pictures are exact
        assert entry["truth"]["name"] == entry["file"].split("/")[0]
        for key, model in (("fp32", compressed.full), ("quantized", compressed.model)):
            said = predict(model, cache, torch.tensor([index])).softmax(1)[0]
            assert entry[key]["class"] == int(said.argmax())
            assert entry[key]["probability"] == pytest.approx(float(said.max()), abs=1e-3)
    differing = [entry for entry in sampled["images"] if entry["fp32"]["class"] != entry["quantized"]["class"]]
    disagreements = int((compressed.reference_logits.argmax(1) != compressed.logits.argmax(1)).sum())
    assert len(differing) >= min(3, disagreements)


def test_without_class_folders_classes_are_numbers(classifier: tuple[Compressed, Architecture], task: Task) -> None:
    compressed, architecture = classifier
    more_classes = Architecture("cifar_resnet20", 12, stem="cifar", shortcut="pad")
    labels = held_out_labels(compressed.cache, more_classes)
    (entry,) = sample_predictions(compressed, more_classes, labels, None, 1)["images"]
    assert (entry["truth"], entry["fp32"]["name"]) == (None, None)
    assert architecture.num_classes == 10


def test_a_detector(detection_task: DetectionTask, tmp_path: Any) -> None:
    compressed, architecture = compressed_of(
        detection_task.first, detection_task.calibration, tmp_path, scenes.INPUT, 4
    )
    cache = compressed.cache
    labels = held_out_labels(cache, architecture)
    evaluation = evaluate(compressed, architecture, labels, SERVED)
    sampled = sample_predictions(compressed, architecture, labels, evaluation.boxes, 4)
    assert (sampled["task"], len(sampled["images"])) == ("detection", 4)
    for entry in sampled["images"]:
        index = cache.files.index(entry["file"])
        assert (entry["width"], entry["height"]) == (scenes.WIDTH, scenes.HEIGHT)
        assert picture_of(entry).size == cache.letterbox(index).inner  # without the border
        (seen,) = detect_all(compressed.model, scenes.plan(), cache, torch.tensor([index]), SERVED)
        assert len(entry["quantized"]) == pytest.approx(len(seen), abs=1)
        for box in entry["quantized"]:
            assert box["name"] == scenes.NAMES[box["class"]]
            assert 0 <= box["box"][0] < box["box"][2] <= scenes.WIDTH
            assert 0 <= box["box"][1] < box["box"][3] <= scenes.HEIGHT


def test_pictures_stay_within_their_budget(
    classifier: tuple[Compressed, Architecture], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed, architecture = classifier
    labels = held_out_labels(compressed.cache, architecture)
    everything = sample_predictions(compressed, architecture, labels, None, 10)["images"]
    size = sum(len(entry["picture"]) for entry in everything[:4])
    monkeypatch.setattr(predictions, "MAX_PICTURE_BYTES", size)
    assert sample_predictions(compressed, architecture, labels, None, 10)["images"] == everything[:4]


def test_large_pictures_are_scaled_down() -> None:
    pixels = np.zeros((600, 900, 3), np.uint8)
    image = picture_of({"picture": predictions._data_uri(pixels, 400)})
    assert (image.format, image.size) == ("JPEG", (400, 267))
    grey = picture_of({"picture": predictions._data_uri(np.zeros((8, 8, 1), np.uint8), 400)})
    assert (grey.format, grey.mode) == ("PNG", "L")
