from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from edged.comparators.inputs import inputs_of, squared_gradients
from edged.comparators.method import Options
from tests.support.comparators import images, network, unit_inputs


def test_inputs_are_those_of_a_whole_pass():
    model, seen = network(), []
    hook = model.layer2[0].conv2.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].clone()))
    for batch in images():
        model(batch)
    hook.remove()
    assert_close(inputs_of(model, "layer2.0.conv2", images()), torch.cat(seen))


def test_no_hook_is_left_behind():
    model = network()
    inputs_of(model, "layer2.0", images())
    assert model(next(iter(images()))).shape == (16, 10)


def test_targets_are_of_full_precision_and_inputs_of_the_quantized_network():
    model = network()
    unit, inputs = unit_inputs(model, "layer2.0.conv1", Options(bits=2))
    assert_close(inputs.targets, unit.module(inputs_of(model, unit.name, images())))
    assert (inputs.of_quantized - inputs.of_full).abs().max() > 0.01


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
