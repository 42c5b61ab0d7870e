from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.errors import ArchitectureError
from edged.execution import graph as ops
from edged.execution.build import build_graph
from edged.execution.positive_scales import with_positive_scales
from edged.execution.simulator import run_float
from tests.support.executions import NETWORKS, images, network, relative_error, rounded_weights


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_the_network(name: str) -> None:
    model = network(name)
    x = images(model, 3, seed=1)
    with torch.inference_mode():
        wanted = model(x)
        assert relative_error(run_float(build_graph(model), x), wanted) < 1e-8
        rounded, quantized = rounded_weights(model, bits=4)
        graph = build_graph(rounded, quantized)
        assert relative_error(run_float(graph, x), rounded(x)) < 1e-8
    assert graph.channels == x.shape[1]
    assert len(images(model, 3, seed=1)) == 3


@pytest.mark.parametrize("name", ["option A", "resnet18", "yolov5", "head of fastai"])
def test_codes_are_those_of_the_network(name: str) -> None:
    model, quantized = rounded_weights(with_positive_scales(network(name)), bits=3)
    found = {node.weight.parameter: node.weight.quantized for node in build_graph(model, quantized).weighted()}
    found.pop("", None)  # the shortcuts of option A
    assert found.keys() == quantized.keys()
    for parameter, weight in found.items():
        assert weight is not None
        assert torch.equal(weight.codes, quantized[parameter].codes)
        assert torch.equal(weight.zero_point, quantized[parameter].zero_point)


def test_the_first_convolution_of_focus_reads_pixels() -> None:
    """Its kernel of 3 over corners is one of 6 over pixels, with its codes at their pixels' places."""
    model, quantized = rounded_weights(with_positive_scales(network("focus")), bits=3)
    first = next(iter(build_graph(model, quantized).weighted()))
    assert isinstance(first, ops.Conv)
    assert (first.stride, first.padding, tuple(first.weight.values.shape[1:])) == ((2, 2), (2, 2), (3, 6, 6))
    codes = first.weight.quantized
    assert codes is not None
    spread, joined = codes.codes.view(codes.shape), quantized["model.0.conv.conv.weight"]
    corners = [spread[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert torch.equal(torch.cat(corners, 1), joined.codes.view(joined.shape))


def test_a_batchnorm_with_no_linear_layer_before_it_is_an_operation_of_its_own() -> None:
    model, quantized = rounded_weights(with_positive_scales(network("head of fastai")), bits=4)
    nodes = build_graph(model, quantized).nodes
    assert [type(node) for node in nodes[-8:]] == [
        *(ops.GlobalMaxPool, ops.GlobalAveragePool, ops.Concat, ops.Affine),
        *(ops.Linear, ops.Relu, ops.Affine, ops.Linear),
    ]


def test_a_negative_factor_after_a_linear_layer_is_not_folded_into_its_scales() -> None:
    model = copy.deepcopy(network("batchnorm after linear"))
    model.linear[1].weight.abs_()
    rounded, quantized = rounded_weights(model, bits=4)
    assert not [node for node in build_graph(rounded, quantized).nodes if isinstance(node, ops.Affine)]
    model.linear[1].weight[0] *= -1
    rounded, quantized = rounded_weights(model, bits=4)
    graph = build_graph(rounded, quantized)
    assert len([node for node in graph.nodes if isinstance(node, ops.Affine)]) == 1
    assert all(bool((node.weight.quantized.scale >= 0).all()) for node in list(graph.weighted())[-2:])


class _Net(nn.Module):
    """A convolution, a BatchNorm and whatever a test makes of them."""

    def __init__(self, then: Callable[[_Net, Tensor], Tensor], **convolution: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, **{"padding": 1} | convolution)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.average = nn.AdaptiveAvgPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2, mode="bilinear")
        self.gelu = nn.GELU(approximate="tanh")
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (lambda net, x: net.norm(x), "a BatchNorm that does not follow a convolution"),
        (lambda net, x: net.norm(net.conv(x).relu()), "relu"),
        (lambda net, x: net.pool(net.conv(x)), "rounds up"),
        (lambda net, x: net.average(net.conv(x)), "more than one pixel"),
        (lambda net, x: net.enlarge(net.conv(x)), "nearest pixel"),
        (lambda net, x: net.gelu(net.conv(x)), "an approximated GELU"),
        (lambda net, x: net.conv(x).mean((1, 2)), "other axes"),
        (lambda net, x: net.conv(x)[:, 0], "every n-th row"),
        (lambda net, x: net.conv(x)[:, 1:, ::2, ::2], "ends before the edge"),
        (lambda net, x: net.conv(x)[:, :, :4, ::2], "ends before the edge"),
        (lambda net, x: functional.relu(net.conv(x)[:, :, ::2, ::2]), "selects or rearranges"),
        (lambda net, x: functional.pad(net.conv(x), (1, 1, 1, 1)), "a border around a map"),
        (lambda net, x: functional.pad(net.conv(x)[:, :, 1::2, ::2], (0, 0, 0, 0, 1, 1)), "a border around a map"),
        (lambda net, x: torch.sin(net.conv(x)), "sin"),
        (lambda net, x: functional.relu(x), "does not begin with a convolution"),
        (lambda net, x: net.conv(torch.cat([x[..., ::2, ::2]] * 4, 1)[:, :3]), "Focus"),
    ],
)
def test_what_has_no_counterpart_is_refused(then: Callable[[_Net, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        build_graph(_Net(then).eval())


@pytest.mark.parametrize("changes", [{"dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}])
def test_other_convolutions_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ArchitectureError, match="a dilated convolution, or one with other padding than zeros"):
        build_graph(_Net(lambda net, x: net.conv(x), **changes).eval())


def test_a_batchnorm_without_statistics_is_refused() -> None:
    net = _Net(lambda net, x: net.norm(net.conv(x))).eval()
    net.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    with pytest.raises(ArchitectureError, match="has no statistics"):
        build_graph(net)


def test_a_batchnorm_without_factors_is_folded() -> None:
    net = _Net(lambda net, x: net.norm(net.conv(x)), bias=True).eval()
    net.norm = nn.BatchNorm2d(4, affine=False).eval()
    net.norm.running_mean.fill_(0.3)
    net.norm.running_var.fill_(4.0)
    x = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        assert relative_error(run_float(build_graph(net), x), net(x)) < 1e-10


def test_the_network_is_not_modified() -> None:
    model = network("resnet18")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_graph(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
