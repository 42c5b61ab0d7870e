from __future__ import annotations

import pytest
import torch
from torch import nn

from edged.execution.build import build_graph
from edged.execution.positive_scales import with_positive_scales
from tests.support.executions import images, network, relative_error, rounded_weights


def factors(model: nn.Module) -> torch.Tensor:
    return torch.cat([module.weight for module in model.modules() if isinstance(module, nn.BatchNorm2d)])


@pytest.mark.parametrize("name", ["option A", "resnet18", "yolov5", "head of fastai"])
def test_all_factors_are_positive_and_the_function_is_the_same(name: str) -> None:
    model = network(name)
    changed = with_positive_scales(model)
    assert bool((factors(model) < 0).any())
    assert bool((factors(changed) >= 0).all())
    x = images(model, 2, seed=3)
    assert relative_error(changed(x), model(x)) < 1e-9
    graph = build_graph(*rounded_weights(changed, bits=4))
    assert all(bool((node.weight.quantized.scale >= 0).all()) for node in graph.weighted())


def test_the_network_is_not_modified_and_unchanged_tensors_are_shared() -> None:
    model = network("option B")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = with_positive_scales(model).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert changed["linear.weight"].data_ptr() == model.linear.weight.data_ptr()


def test_a_bias_of_the_convolution_is_negated_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model[1].weight.data = torch.tensor([1.0, -1.0, -0.5, 0.0])
    model[1].running_mean.uniform_()
    changed = with_positive_scales(model)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert relative_error(changed(x), model(x)) < 1e-10
    assert torch.equal(changed[0].bias, model[0].bias * torch.tensor([1.0, -1.0, -1.0, 1.0]))
