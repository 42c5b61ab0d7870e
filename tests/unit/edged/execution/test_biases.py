from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from edged.errors import ArtifactError
from edged.execution.biases import MOST_STEPS, with_representable_biases
from edged.execution.graph import Conv, Graph, Relu, Weight
from edged.execution.grids import ActivationGrid
from edged.execution.placement import Placement, place
from edged.execution.simulator import Simulator
from edged.quant.grid import QuantizedWeight
from tests.support.executions import execution, network, relative_error, run

GRIDS = {"x": ActivationGrid(1 / 128, 128), "c": ActivationGrid(1 / 16, 128)}


def placement(scales: list[float], biases: list[float]) -> Placement:
    rows = len(scales)
    codes = torch.arange(rows * 2, dtype=torch.uint8).view(rows, 2) + 3
    quantized = QuantizedWeight(
        codes, torch.tensor(scales), torch.full((rows,), 8, dtype=torch.uint8), 4, (rows, 2, 1, 1)
    )
    weight = Weight("conv.weight", quantized.decode(), quantized)
    nodes = (Conv("c", ("x",), weight, torch.tensor(biases)), Relu("r", ("c",)), Relu("y", ("r",)))
    return place(Graph("x", 2, nodes, "y"))


def test_weights_whose_biases_fit_are_kept() -> None:
    before = placement([0.5, 0.25], [1.0, -30.0])
    after = with_representable_biases(before, GRIDS)
    assert next(after.graph.weighted()).weight is next(before.graph.weighted()).weight


def test_a_channel_of_tiny_weights_and_a_large_bias_is_its_bias() -> None:
    before = placement([0.5, 1e-12], [1.0, 20.0])
    layer = next(with_representable_biases(before, GRIDS).graph.weighted())
    quantized = layer.weight.quantized
    assert quantized is not None
    assert quantized.codes[0].tolist() == [3, 4]
    assert quantized.codes[1].tolist() == [8, 8]  # the zero point
    assert abs(20.0 / (GRIDS["x"].scale * float(quantized.scale[1]))) <= MOST_STEPS * (1 + 1e-6)
    assert torch.equal(layer.weight.values, quantized.decode())
    assert layer.bias.tolist() == [1.0, 20.0]


@pytest.mark.parametrize("bias", [0.0, -7.5])
def test_a_batchnorm_factor_of_zero_leaves_the_bias(bias: float) -> None:
    layer = next(with_representable_biases(placement([0.5, 0.0], [1.0, bias]), GRIDS).graph.weighted())
    quantized = layer.weight.quantized
    assert quantized is not None
    assert float(quantized.scale[1]) > 0
    assert bool((layer.weight.values[1] == 0).all())


def test_negative_scales_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"'conv\.weight' has negative scales, which no integer engine takes"):
        with_representable_biases(placement([0.5, -0.5], [0.0, 0.0]), GRIDS)


def test_layers_in_float_are_kept() -> None:
    before = placement([0.5, 1e-12], [1.0, 20.0])
    in_float = dataclasses.replace(before, float_layers=frozenset({"c"}))
    assert next(with_representable_biases(in_float, GRIDS).graph.weighted()).weight.quantized is not None
    assert with_representable_biases(in_float, GRIDS).graph.nodes[0] is before.graph.nodes[0]


def test_such_channels_run_in_integers_as_in_float() -> None:
    """Pruned channels of trained networks: factors of zero and next to zero, with biases that matter."""
    model = copy.deepcopy(network("option B"))
    norm = model.layer1[0].bn1
    norm.weight[:4] = torch.tensor([0.0, 1e-13, 1e-9, 1e-30])
    norm.bias[:4] = torch.tensor([3.0, 2.0, -1.0, 4.0])
    done = execution(model)
    whole = Simulator(done.placement, done.grids).run(done.images)
    assert relative_error(whole, model(done.images)) < 0.01
    assert relative_error(run(done.onnx(), done.images), whole) < 1e-3
