from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from edged.calibration.dataset import ImageCache
from edged.engine.layerwise import quantize_network
from edged.engine.memory_plan import Resources
from edged.engine.sensitivity import ANCHORS, SOLVED, WIDTHS, LayerSensitivity, measure_sensitivity
from edged.errors import MemoryLimitError
from edged.evaluation.fidelity import squared_error
from edged.progress import SilentListener
from edged.spec import AUTO, Order, QuantSpec, Search, Statistics
from tests.support.compressed import network, small_cache

SPEC = QuantSpec(bits=AUTO, size_limit=1 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    return small_cache(tmp_path_factory.mktemp("calibration"))


@pytest.fixture(scope="module")
def model(cache: ImageCache) -> nn.Module:
    return network(cache, blocks=1).to(memory_format=torch.channels_last)


def measured(model: nn.Module, cache: ImageCache, spec: QuantSpec = SPEC) -> dict[str, LayerSensitivity]:
    return measure_sensitivity(model, cache, spec, squared_error, Resources(), SilentListener())


@pytest.fixture(scope="module")
def found(model: nn.Module, cache: ImageCache) -> dict[str, LayerSensitivity]:
    return measured(model, cache)


@pytest.mark.parametrize("bits", ANCHORS)
def test_at_the_anchors_the_error_is_that_of_the_network_with_the_layer_alone_quantized(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity], bits: int
):
    """The oracle quantizes everything by a plain call, puts one layer and its BatchNorm into a copy, and runs that."""
    spec = QuantSpec(bits=bits, propagation=0, search=Search.WEIGHTED, order=Order.HESSIAN)
    quantized = quantize_network(model, cache, spec, Resources(), SilentListener())
    theirs = dict(quantized.model.named_modules())
    images = cache.batch(cache.held_out)
    for name, layer in found.items():
        alone = copy.deepcopy(model)
        for module in (name, {"linear": ""}.get(name, name.replace("conv", "bn"))):
            if module:
                alone.get_submodule(module).load_state_dict(theirs[module].state_dict())
        with torch.inference_mode():
            expected = squared_error(model(images), alone(images)) / len(images)
        assert layer.errors[bits] == pytest.approx(expected, rel=1e-2)
        assert layer.losses[bits] == pytest.approx(quantized.results[name].relative_loss, rel=1e-3)


@pytest.mark.parametrize("bits", [3, 6])
def test_losses_are_those_of_a_quantization_or_near_where_they_are_interpolated(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity], bits: int
):
    spec = QuantSpec(bits=bits, propagation=0, search=Search.WEIGHTED, order=Order.HESSIAN)
    quantized = quantize_network(model, cache, spec, Resources(), SilentListener())
    tolerance = 1e-3 if bits in SOLVED else 0.3  # a bit is a factor of 4
    for name, layer in found.items():
        assert layer.losses[bits] == pytest.approx(quantized.results[name].relative_loss, rel=tolerance)


def test_errors_and_losses_fall_with_the_width(found: dict[str, LayerSensitivity]):
    for layer in found.values():
        for values in (layer.errors, layer.losses):
            assert list(values) == list(WIDTHS)
            assert list(values.values()) == sorted(values.values(), reverse=True)
            assert values[8] < values[2] / 100


def test_beyond_the_anchors_errors_follow_the_losses(found: dict[str, LayerSensitivity]):
    for layer in found.values():
        for bits in (6, 8):
            expected = layer.errors[4] * layer.losses[bits] / layer.losses[4]
            assert layer.errors[bits] == pytest.approx(expected, rel=1e-9)
        assert layer.errors[4] < layer.errors[3] < layer.errors[2]


def test_layers_with_bits_of_their_own_keep_them(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity]
):
    given = measured(model, cache, dataclasses.replace(SPEC, first_bits=8, last_bits=6))
    names = list(given)
    assert [given[name].fixed for name in names] == [8, *[None] * (len(names) - 2), 6]
    assert [layer.fixed for layer in found.values()] == [None] * len(names)
    assert [layer.weights for layer in found.values()] == [model.get_submodule(name).weight.numel() for name in names]


def test_the_model_is_not_modified_and_a_second_measurement_is_equal(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity]
):
    before = copy.deepcopy(model.state_dict())
    assert measured(model, cache) == found
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_effects_can_be_measured_on_smaller_images(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity]
):
    halves = measure_sensitivity(model, cache, SPEC, squared_error, Resources(), SilentListener(), shrink=2)
    (name, *_) = found
    spec = QuantSpec(bits=2, propagation=0, search=Search.WEIGHTED, order=Order.HESSIAN)
    theirs = quantize_network(model, cache, spec, Resources(), SilentListener()).model
    alone = copy.deepcopy(model)
    for module in (name, name.replace("conv", "bn")):
        alone.get_submodule(module).load_state_dict(theirs.get_submodule(module).state_dict())
    images = nn.functional.avg_pool2d(cache.batch(cache.held_out), 2)
    with torch.inference_mode():
        expected = squared_error(model(images), alone(images)) / len(images)
    assert halves[name].errors[2] == pytest.approx(expected, rel=1e-2)
    assert halves[name].errors[2] != pytest.approx(found[name].errors[2], rel=0.05)
    assert halves[name].losses == found[name].losses


def test_without_correction_of_statistics_layers_cost_more(
    model: nn.Module, cache: ImageCache, found: dict[str, LayerSensitivity]
):
    plain = measured(model, cache, dataclasses.replace(SPEC, statistics=Statistics.NONE))
    assert sum(layer.errors[2] for layer in plain.values()) > sum(layer.errors[2] for layer in found.values())


def test_a_memory_limit_that_is_too_low_is_refused(model: nn.Module, cache: ImageCache):
    with pytest.raises(MemoryLimitError):
        measure_sensitivity(model, cache, SPEC, squared_error, Resources(memory_limit=1 << 20), SilentListener())
