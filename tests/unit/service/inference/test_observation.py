from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.calibration.color_histograms import color_histograms, population_stability
from edged.calibration.images import decode_bytes, normalize
from edged.spec import Fit, InputSpec
from service.inference import observation
from service.inference.observation import ENOUGH, RECENT, Drift, Observation, as_png, intensities
from service.inference.requests import Request
from service.storage.capture_ring import Ring
from tests.support.odd_images import mpo

SPECS = [
    InputSpec(8, 8),
    InputSpec(8, 11),
    InputSpec(14, 16),
    InputSpec(8, 9, (0.5,), (0.25,)),
    InputSpec(32, 32, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX),
]


def pixels_of(seed, spec, count=1):
    return np.random.default_rng(seed).integers(0, 256, (count, spec.channels, spec.size, spec.size), np.uint8)


@given(st.integers(0, 2**32 - 1), st.sampled_from(SPECS), st.sampled_from([np.float32, np.float16]))
def test_a_tensor_is_encoded_as_an_image_with_the_same_pixels(seed, spec, dtype):
    pixels = pixels_of(seed, spec)
    tensor = normalize(pixels, spec).astype(dtype).astype(np.float32)[0]
    encoded = as_png(tensor, spec)
    assert encoded is not None
    np.testing.assert_array_equal(decode_bytes(encoded, spec), pixels[0])
    np.testing.assert_allclose(intensities(tensor, spec), pixels[0], atol=0.1)


@pytest.mark.parametrize("change", [lambda x: x + 0.002, lambda x: x * 3, lambda x: x - 5], ids=["off", "wide", "low"])
def test_a_tensor_with_other_values_than_intensities_is_not_encoded(change):
    spec = SPECS[0]
    tensor = normalize(pixels_of(0, spec), spec)[0]
    assert as_png(change(tensor), spec) is None


def test_drift_is_the_stability_index_of_the_latest_images():
    spec, rest = SPECS[0], 10
    reference = color_histograms(pixels_of(0, spec, 500)).mean(axis=0)
    drift = Drift(reference)
    images = pixels_of(1, spec, RECENT + rest)
    for count, image in enumerate(images, 1):
        drift.add(image)
        assert drift.images == min(count, RECENT)
        assert (drift.index() is None) == (count < ENOUGH)
    expected = population_stability(reference, color_histograms(images[rest:]).mean(axis=0))
    assert drift.index() == pytest.approx(expected)


class Told:
    """Yields the reports of an observation, one after another."""

    def __init__(self, tmp_path, spec=SPECS[0], reference=None) -> None:
        self.spec = spec
        self.ring = Ring(tmp_path / "capture", 10, 10_000, 60.0)
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.observation = Observation(spec, reference, self.heard.put)

    def offer(self, images, files=(), capture=True, drift=False):
        order = {"capture": self.ring.to_dict() if capture else None, "drift": drift}
        self.observation.offer(order, Request(images, files=tuple(files)))
        return self.heard.get(timeout=30)

    def stored(self):
        return [entry.path for entry in self.ring.entries()]


def test_an_image_of_a_phone_is_captured_as_a_jpeg(tmp_path):
    """An MPO, which Pillow names as a format of its own."""
    told = Told(tmp_path)
    images = normalize(decode_bytes(mpo(), told.spec)[None], told.spec)
    assert told.offer(images, [mpo()])["capture"] == "stored"
    [path] = told.stored()
    assert (path.suffix, path.read_bytes()) == (".jpg", mpo())


def test_one_image_of_a_batch_is_captured_unchanged(tmp_path):
    told = Told(tmp_path)
    images = normalize(pixels_of(0, told.spec, 3), told.spec)
    files = [as_png(image, told.spec) for image in images]
    assert told.offer(images, [memoryview(file) for file in files]) == {
        "capture": "stored",
        "drift": None,
        "drift_images": 0,
    }
    [path] = told.stored()
    assert path.suffix == ".png"
    assert path.read_bytes() in files


def test_errors_are_reported_and_not_raised(tmp_path):
    told = Told(tmp_path)
    images = normalize(pixels_of(0, told.spec), told.spec)
    assert told.offer(images * 1.01)["capture"] == "no_image"
    assert told.offer(images, [b"no image any more"])["capture"] == "failed"
    told.ring.folder.write_text("no folder")
    assert told.offer(images)["capture"] == "failed"
    told.ring.folder.unlink()
    assert told.offer(images)["capture"] == "stored"


def test_drift_needs_a_reference(tmp_path):
    told = Told(tmp_path)
    images = normalize(pixels_of(0, told.spec), told.spec)
    assert told.offer(images, capture=False, drift=True) == {"capture": None, "drift": None, "drift_images": 0}
    told = Told(tmp_path, reference=color_histograms(pixels_of(1, told.spec)).mean(axis=0))
    assert told.offer(images, capture=False, drift=True)["drift_images"] == 1
    assert told.stored() == []


def test_images_are_left_out_at_once_while_the_queue_is_full(tmp_path, monkeypatch):
    told, free, busy = Told(tmp_path), threading.Event(), threading.Event()

    def slow(*_):
        busy.set()
        assert free.wait(30)

    monkeypatch.setattr(observation, "as_png", slow)
    images = normalize(pixels_of(0, told.spec), told.spec)
    order = {"capture": told.ring.to_dict(), "drift": False}
    told.observation.offer(order, Request(images))
    assert busy.wait(30)  # one is being looked at, two may wait
    for _ in range(4):
        told.observation.offer(order, Request(images))
    assert [told.heard.get(timeout=30)["capture"] for _ in range(2)] == ["left_out"] * 2
    free.set()
    assert [told.heard.get(timeout=30)["capture"] for _ in range(3)] == ["no_image"] * 3


def test_an_image_that_cannot_be_observed_does_not_end_the_thread(tmp_path, monkeypatch):
    told = Told(tmp_path)
    images = normalize(pixels_of(0, told.spec), told.spec)

    def broken(*_):
        raise RuntimeError("never seen before")

    with monkeypatch.context() as patched:
        patched.setattr(observation, "as_png", broken)
        assert told.offer(images)["capture"] == "failed"
    assert told.offer(images)["capture"] == "stored"
