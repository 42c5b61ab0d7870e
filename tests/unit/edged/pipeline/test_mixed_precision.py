"""Bits of each layer within a limit of bytes or of accuracy, by a small network."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edged.artifacts.weights import load_weights, save_weights
from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import Compressed
from edged.errors import CalibrationError, UsageError
from edged.evaluation.gates import Gates
from edged.models.architecture import Architecture
from edged.pipeline import mixed_precision
from edged.pipeline.evaluation import Evaluation, Labels, evaluate
from edged.pipeline.mixed_precision import TRIES, Compressor, HeldOut, gates_with
from edged.spec import ACTIVATION_BITS, AUTO, DetectionSpec, InputSpec, QuantSpec
from tests.support.compressed import network, small_cache
from tests.support.pictures import write_folder
from tests.support.yolov5_samples import tiny_model, tiny_plan

ARCHITECTURE = Architecture("cifar_resnet20", 10, "cifar", shortcut="pad")  # of its kind, with fewer layers
PLAIN = {"propagation": 0.0}  # saves half of the time


def spec_of(**settings: Any) -> QuantSpec:
    return QuantSpec(bits=AUTO, **PLAIN, **settings)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return small_cache(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def model(cache: ImageCache) -> nn.Module:
    return network(cache, blocks=1)


@pytest.fixture(scope="module")
def compressor(model: nn.Module, cache: ImageCache) -> Compressor:
    return compressor_of(model, cache)


def compressor_of(model: nn.Module, cache: ImageCache, labels: Labels | None = None) -> Compressor:
    labels = Labels(classes=cache.labels_of(cache.held_out)) if labels is None else labels
    return Compressor(model, cache, HeldOut(ARCHITECTURE, labels, DetectionSpec()))


def written_bytes(done: Compressed, folder: Path) -> int:
    path = folder / "weights.safetensors"
    save_weights(path, done.quantized, done.rest)
    return path.stat().st_size


def chosen(compressor: Compressor, **settings: Any) -> dict[str, Any]:
    report = compressor(spec_of(**settings)).chosen_bits
    assert report is not None
    return dict(report)


def test_the_limit_is_kept_to_the_byte(compressor: Compressor, tmp_path: Path) -> None:
    least = written_bytes(compressor(QuantSpec(bits=2, **PLAIN)), tmp_path)
    for limit in (least, least + 1, least + 12_345):
        done = compressor(spec_of(size_limit=limit))
        size, report = written_bytes(done, tmp_path), done.chosen_bits
        assert report is not None
        assert size == report["bytes"] <= limit
        assert report["bound"] == report["error"]
    assert size > limit - 500  # as little as no layer takes for one bit more
    weights, _ = load_weights(tmp_path / "weights.safetensors")
    bits = {layer.name: layer.bits for layer in done.layers}
    assert {name.removesuffix(".weight"): weight.bits for name, weight in weights.items()} == bits
    assert {layer["name"]: layer["bits"] for layer in report["layers"]} == bits
    assert (report["least"], report["most"]) == (min(bits.values()), max(bits.values()))
    assert report["least"] < report["mean"] < report["most"]


def test_a_limit_below_two_bits_names_the_least_that_is_possible(compressor: Compressor, tmp_path: Path) -> None:
    least = written_bytes(compressor(QuantSpec(bits=2, **PLAIN)), tmp_path)
    with pytest.raises(UsageError, match=rf"size_limit is {least - 1} bytes, .* the weights take {least} bytes"):
        compressor(spec_of(size_limit=least - 1))


def test_with_room_for_eight_bits_every_layer_gets_them(compressor: Compressor) -> None:
    report = chosen(compressor, size_limit=1 << 30)
    assert (report["least"], report["most"], report["mean"]) == (8, 8, 8.0)


def test_more_bytes_never_cost_more(compressor: Compressor) -> None:
    limits = range(40_000, 80_000, 12_000)
    errors = [chosen(compressor, size_limit=limit)["error"] for limit in limits]
    assert errors == sorted(errors, reverse=True)


def test_bits_that_are_given_stay(compressor: Compressor, model: nn.Module, cache: ImageCache) -> None:
    report = chosen(compressor_of(model, cache), size_limit=45_000, first_bits=8, last_bits=3)
    assert [report["layers"][index]["bits"] for index in (0, -1)] == [8, 3]
    assert [report["layers"][index]["given"] for index in (0, 1, -1)] == [True, False, True]


def test_the_choice_beats_one_width_of_the_same_bytes(compressor: Compressor) -> None:
    """By the error that was measured for each layer; what that means for accuracy is measured in benchmarks/."""
    uniform = compressor(QuantSpec(bits=3, **PLAIN))
    report = chosen(compressor, size_limit=1 << 30)
    bytes_of_three = sum((weight.codes.numel() * 3 + 7) // 8 for weight in uniform.quantized.values())
    error_of_three = sum(layer["errors"]["3"] for layer in report["layers"])
    fixed = report["bytes"] - sum(weight.codes.numel() for weight in uniform.quantized.values())
    assert chosen(compressor, size_limit=fixed + bytes_of_three)["error"] < 0.9 * error_of_three


def test_the_report_compares_one_width_with_the_choice_of_the_same_bytes(
    compressor: Compressor, tmp_path: Path
) -> None:
    report = chosen(compressor, size_limit=45_000)
    uniform, others = report["frontier"]["uniform"], report["frontier"]["chosen"]
    assert [each["bits"] for each in uniform] == [2, 3, 4, 5, 6, 7, 8]
    assert uniform[1]["bytes"] == written_bytes(compressor(QuantSpec(bits=3, **PLAIN)), tmp_path)
    assert uniform[1]["error"] == pytest.approx(sum(layer["errors"]["3"] for layer in report["layers"]))
    for one, other in zip(uniform, others, strict=True):
        assert other["bytes"] <= one["bytes"]
        assert other["error"] <= one["error"] * (1 + 1e-9)
    assert others[2]["error"] < 0.9 * uniform[2]["error"]


def test_the_same_images_give_the_same_bits_and_codes(model: nn.Module, cache: ImageCache) -> None:
    first, second = (compressor_of(model, cache)(spec_of(size_limit=45_000)) for _ in range(2))
    assert first.chosen_bits == second.chosen_bits
    assert all(torch.equal(weight.codes, second.quantized[name].codes) for name, weight in first.quantized.items())


def test_sensitivities_are_measured_once(model: nn.Module, cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measure = mixed_precision.measure_sensitivity
    monkeypatch.setattr(mixed_precision, "measure_sensitivity", lambda *args: calls.append(args) or measure(*args))
    compressor = compressor_of(model, cache)
    for limit in (45_000, 55_000):
        compressor(spec_of(size_limit=limit))
    assert len(calls) == 1


def test_a_drop_that_anything_keeps_takes_few_bytes_and_one_that_nothing_keeps_takes_all(
    compressor: Compressor,
) -> None:
    easy, hard = chosen(compressor, max_drop=100.0), chosen(compressor, max_drop=0.0)
    for report, allowed in ((easy, 100.0), (hard, 0.0)):
        assert 1 <= len(report["tries"]) <= TRIES
        holding = [entry["bytes"] for entry in report["tries"] if entry["drop"] <= allowed]
        failing = [entry["bytes"] for entry in report["tries"] if entry["drop"] > allowed]
        assert report["bytes"] == min(holding, default=report["bytes"])
        assert all(size < report["bytes"] for size in failing)
    assert easy["bytes"] < 1.1 * chosen(compressor, size_limit=1 << 30)["bytes"] / 8**0.5
    sizes = [entry["bytes"] for entry in easy["tries"]]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("activation_bits", "floats"), [(ACTIVATION_BITS, False), (AUTO, True), (None, False)])
def test_tries_are_measured_as_they_may_be_served(
    monkeypatch: pytest.MonkeyPatch, compressor: Compressor, activation_bits: int | str | None, floats: bool
) -> None:
    measured: list[Compressed] = []

    def recorded(compressed: Compressed, *args: Any) -> Evaluation:
        measured.append(compressed)
        return evaluate(compressed, *args)

    monkeypatch.setattr(mixed_precision, "evaluate", recorded)
    done = compressor(spec_of(max_drop=100.0, activation_bits=activation_bits))
    assert done.chosen_bits is not None
    assert [each.serves_floats for each in measured] == [floats] * len(done.chosen_bits["tries"])


def test_both_limits_hold_together(compressor: Compressor) -> None:
    report = chosen(compressor, max_drop=0.0, size_limit=40_000)
    assert report["bytes"] <= 40_000


def test_a_drop_without_labels_is_refused(model: nn.Module, cache: ImageCache) -> None:
    with pytest.raises(CalibrationError, match="bits auto with max_drop measures the accuracy, and the images have no"):
        compressor_of(model, cache, Labels())(spec_of(max_drop=1.0))


def test_the_drop_is_a_gate_as_well() -> None:
    gates = Gates(max_drop=0.5)
    assert gates_with(gates, QuantSpec()) == gates
    assert gates_with(gates, spec_of(size_limit=9)) == gates
    assert gates_with(gates, spec_of(max_drop=0.2)).max_drop == 0.2
    assert gates_with(gates, spec_of(max_drop=2.0)).max_drop == 0.5
    assert gates_with(dataclasses.replace(gates, max_drop=0.0), spec_of(max_drop=2.0)).max_drop == 0.0
    assert gates_with(Gates(), spec_of(max_drop=2.0)).max_drop == 2.0


def test_a_detector_gets_bits_of_its_own(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", classes=1, images=40)
    letterboxes = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec.letterbox(64))
    detector = tiny_model()
    held_out = HeldOut(Architecture.detector(tiny_plan()), Labels(), DetectionSpec())
    compressor = Compressor(detector, letterboxes, held_out)
    limit = written_bytes(compressor(QuantSpec(bits=5, **PLAIN)), tmp_path)
    done = compressor(spec_of(size_limit=limit))
    assert done.chosen_bits is not None
    assert written_bytes(done, tmp_path) == done.chosen_bits["bytes"] <= limit
    assert done.chosen_bits["least"] < done.chosen_bits["most"]


@pytest.mark.parametrize(("size", "shrink"), [(640, 2), (512, 2), (480, 1), (416, 1), (520, 1), (1280, 2)])
def test_layers_of_a_detector_are_compared_on_halves_of_large_images(
    monkeypatch: pytest.MonkeyPatch, cache: ImageCache, size: int, shrink: int
) -> None:
    """Where the halves are images that the detector takes: its largest stride divides their sides."""
    asked = []
    monkeypatch.setattr(mixed_precision, "measure_sensitivity", lambda *args: asked.append(args[-1]) or {})
    some = copy.copy(cache)
    some.input = InputSpec.letterbox(size)
    held_out = HeldOut(Architecture.detector(tiny_plan()), Labels(), DetectionSpec())
    Compressor(tiny_model(), some, held_out)._sensitivities(spec_of(size_limit=9))
    assert asked == [shrink]
