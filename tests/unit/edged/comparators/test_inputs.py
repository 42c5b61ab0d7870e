from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.comparators.inputs import Stream, squared_gradients
from edged.comparators.method import Options
from edged.models.graph import Program
from tests.support.comparators import images, inputs_of, network, unit_inputs


@pytest.mark.parametrize("name", ["conv1", "layer1.0.conv1", "layer2.0", "layer2.0.conv2", "linear"])
def test_inputs_are_those_of_whole_passes(name: str):
    model, (unit, inputs) = network(), unit_inputs(network(), name, Options(bits=2), blockwise=name == "layer2.0")
    assert_close(inputs.of_full, inputs_of(model, name))
    assert_close(inputs.of_quantized, inputs_of(inputs.quantized, name))
    assert_close(inputs.targets, unit.module(inputs_of(model, name)))
    if name != "conv1":
        assert (inputs.of_quantized - inputs.of_full).abs().max() > 0.01


def test_a_stream_goes_on_from_one_layer_to_the_next():
    model = network()
    stream = Stream(Program(model), model, images)
    for name in ("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer3.0.conv2", "linear"):
        assert_close(stream.inputs_of(name), inputs_of(model, name))


def test_layers_are_run_as_they_are_when_the_next_one_is_asked_for():
    model = network()
    stream = Stream(Program(model), model, images)
    stream.inputs_of("layer1.0.conv1")
    model.layer1[0].conv1.weight = nn.Parameter(2 * model.layer1[0].conv1.weight, requires_grad=False)
    assert_close(stream.inputs_of("layer1.0.conv2"), inputs_of(model, "layer1.0.conv2"))


def test_squared_gradients_equal_finite_differences():
    model = network().double()
    rounded = network().double()
    rounded.layer1[0].conv1.weight = nn.Parameter(model.layer1[0].conv1.weight.round(decimals=1), requires_grad=False)
    batch = next(iter(images())).double()[:2]
    found = squared_gradients(model, rounded, "layer1.0", [batch])
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
    assert float(squared_gradients(model, network(), "layer1.0", images()).max()) < 1e-10
