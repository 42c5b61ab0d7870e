from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from edged.comparators.adaround import AdaRound
from edged.comparators.brecq import Brecq, importance_of
from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options
from edged.comparators.nearest import nearest
from edged.comparators.units import Unit, find_units
from edged.models.layers import shared_copy
from tests.support.comparators import decoded, inputs_at, network, output_error, unit_inputs, whole

OPTIONS = Options(bits=2, iterations=200)


def layerwise(model: torch.nn.Module, block: Unit, inputs: UnitInputs) -> dict[str, Tensor]:
    """Return the block's weights as AdaRound quantizes its layers, one after another."""
    quantized, weights = shared_copy(inputs.quantized), {}
    for unit in find_units(model, blockwise=False):
        if unit.name in block.layers:
            solution = AdaRound().quantize(unit, inputs_at(unit, model, quantized), OPTIONS)
            weights |= decoded(solution.weights)
            quantized.get_submodule(unit.name).weight = torch.nn.Parameter(weights[unit.name], requires_grad=False)
    return weights


def test_the_block_error_is_below_that_of_adaround():
    model = network()
    block, inputs = unit_inputs(model, "layer2.0", OPTIONS, blockwise=True)
    learned = decoded(Brecq().quantize(block, inputs, OPTIONS).weights)
    importance = importance_of(block, inputs, OPTIONS)(range(48))
    x, target = whole(inputs.of_quantized), whole(inputs.targets())

    def error(weights: dict[str, Tensor]) -> float:
        return float(((block.run(x, weights) - target).square() * importance).mean())

    assert error(learned) < error(layerwise(model, block, inputs))


def test_importance_has_a_mean_of_one_and_differs_between_outputs():
    block, inputs = unit_inputs(network(), "layer3.0", OPTIONS, blockwise=True)
    importance = importance_of(block, inputs, OPTIONS)(range(48))
    assert importance.shape == whole(inputs.targets()).shape
    assert_close(importance.mean(), torch.tensor(1.0), rtol=1e-3, atol=0)
    assert float(importance.std()) > 0.1


def test_a_layer_outside_of_blocks_is_reconstructed_on_its_own():
    unit, inputs = unit_inputs(network(), "linear", OPTIONS, blockwise=True)
    learned = Brecq().quantize(unit, inputs, OPTIONS)
    before = output_error(unit, inputs, decoded(nearest(unit, OPTIONS).weights))
    assert output_error(unit, inputs, decoded(learned.weights)) < before
