from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.comparators.inputs import Stream, squared_gradients
from edged.comparators.method import Options
from edged.engine.activations import ActivationStore
from edged.models.graph import Program
from tests.support.comparators import images, inputs_of, network, unit_inputs, whole

HALF: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2}  # values are kept as float16


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "layer2.0", "layer2.0.conv2", "linear"])
def test_inputs_are_those_of_whole_passes(name: str):
    model, (unit, inputs) = network(), unit_inputs(network(), name, Options(bits=2), blockwise=name == "layer2.0")
    full, quantized = whole(inputs.of_full), whole(inputs.of_quantized)
    assert_close(full, inputs_of(model, name), **HALF)
    assert_close(quantized, inputs_of(inputs.quantized, name), **HALF)
    assert_close(whole(inputs.targets()), unit.module(inputs_of(model, name)), **HALF)
    if name != "conv1":
        assert (quantized - full).abs().max() > 0.01


@pytest.mark.parametrize("memory", [0, 100_000, 1 << 30])
def test_a_stream_goes_on_from_one_layer_to_the_next_in_memory_and_on_the_disk(memory: int, tmp_path: Path):
    model = network()
    with ActivationStore(memory, tmp_path) as store:
        stream = Stream("full", Program(model), model, images, store)
        for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2", "linear"):
            assert_close(whole(stream.inputs_of(name)), inputs_of(model, name), **HALF)


def test_layers_are_run_as_they_are_when_the_next_one_is_asked_for(tmp_path: Path):
    model = network()
    with ActivationStore(0, tmp_path) as store:
        stream = Stream("full", Program(model), model, images, store)
        stream.inputs_of("layer1.0.conv1")
        model.layer1[0].conv1.weight = nn.Parameter(2 * model.layer1[0].conv1.weight, requires_grad=False)
        assert_close(whole(stream.inputs_of("layer1.0.conv2")), inputs_of(model, "layer1.0.conv2"), **HALF)


def test_samples_are_read_by_image_and_in_batches():
    _, inputs = unit_inputs(network(), "layer1.0.conv1", Options(bits=2))
    samples, x = inputs.of_full, whole(inputs.of_full)
    assert torch.equal(samples.rows([5, 40, 5]), x[[5, 40, 5]])
    assert [len(batch) for batch in samples.batches()] == [16, 16, 16]


def test_parts_take_few_bytes(monkeypatch: pytest.MonkeyPatch):
    _, inputs = unit_inputs(network(), "layer1.0.conv1", Options(bits=2))
    monkeypatch.setattr("edged.comparators.inputs.PART_BYTES", 3 * 16 * 8 * 8 * 4)
    assert list(inputs.of_full.parts(torch.tensor([4, 9, 2, 1]))) == [[4, 9, 2], [1]]
    monkeypatch.setattr("edged.comparators.inputs.PART_BYTES", 1)
    assert list(inputs.of_full.parts(torch.tensor([4, 9]))) == [[4], [9]]


def test_what_was_kept_for_a_unit_is_released():
    _, inputs = unit_inputs(network(), "layer1.0.conv1", Options(bits=2))
    kept = inputs.keep("targets", inputs.targets())
    assert_close(whole(kept), whole(inputs.targets()), **HALF)
    inputs.release()
    with pytest.raises(KeyError):
        kept.rows([0])


def test_squared_gradients_equal_finite_differences():
    model = network().double()
    rounded = network().double()
    rounded.layer1[0].conv1.weight = nn.Parameter(model.layer1[0].conv1.weight.round(decimals=1), requires_grad=False)
    batch = next(iter(images())).double()[:2]
    found = torch.cat(list(squared_gradients(model, rounded, "layer1.0", [batch])))
    reference = model(batch).softmax(1)

    def loss(nudge: float) -> float:
        def nudged(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[1, 5, 3, 2] += nudge
            return output

        hook = rounded.layer1[0].register_forward_hook(nudged)
        logits = rounded(batch)
        hook.remove()
        return float(nn.functional.kl_div(logits.log_softmax(1), reference, reduction="sum"))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert_close(float(found[1, 5, 3, 2]), slope**2, rtol=1e-3, atol=1e-12)


def test_equal_networks_have_no_gradient():
    model = network()
    assert float(torch.cat(list(squared_gradients(model, network(), "layer1.0", images()))).max()) < 1e-10


def test_gradients_do_not_depend_on_how_many_images_are_computed_at_a_time(monkeypatch: pytest.MonkeyPatch):
    model, rounded = network(), network(seed=1)
    together = list(squared_gradients(model, rounded, "layer2.0", images()))
    monkeypatch.setattr("edged.comparators.inputs.GRADIENT_PIXELS", 5 * 64)
    parts = list(squared_gradients(model, rounded, "layer2.0", images()))
    assert [len(part) for part in parts[:4]] == [5, 5, 5, 1]
    assert_close(torch.cat(parts), torch.cat(together), rtol=1e-3, atol=1e-6)
