from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from edged.errors import ArchitectureError
from edged.models.architecture import CLASSIFIERS, Architecture
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.models.registry import build
from edged.models.resnet import CifarResNet
from tests.support.yolov5_samples import tiny_model


class TwoBranches(nn.Module):
    """The second branch reads the input after the first has run; its layer is moved up to its sibling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(torch.relu(self.norm(self.first(x))))
        y += self.second(x)
        return y.mean((2, 3))


def test_layers_of_one_input_share_a_cut():
    cuts = Program(TwoBranches().eval()).cuts
    assert [cut.layers for cut in cuts] == [("first", "second"), ("middle",)]
    # At the second cut the second branch has been run, so the input is not needed any more; and nothing but the
    # network's output needs the second branch.
    assert cuts[1].live == (cuts[1].source,)


def test_only_a_batchnorm_that_reads_a_layer_alone_follows_it():
    assert Program(TwoBranches()).followers == {"first": "norm"}


@pytest.mark.parametrize("model", [TwoBranches(), CifarResNet(3), CifarResNet(3, shortcut="projection")])
def test_going_from_cut_to_cut_is_running_the_network(model: nn.Module):
    torch.manual_seed(0)
    model.eval()
    program, modules, x = Program(model), dict(model.named_modules()), torch.randn(2, 3, 16, 16)
    read = {}
    for name, module in quantizable_layers(model).items():
        module.register_forward_hook(lambda _m, inputs, _y, name=name: read.update({name: inputs[0]}))
    with torch.inference_mode():
        y = model(x)
        expected = dict(read)
        values, start = {program.input: x}, 0
        for cut in program.cuts:
            values, start = program.run(values, start, cut, modules), cut.index
            assert tuple(values) == cut.live
            assert all(torch.equal(values[cut.source], expected[layer]) for layer in cut.layers)
        assert torch.equal(program.run({program.input: x}, 0, None, modules)["output"], y)


@pytest.mark.parametrize("model", [TwoBranches(), CifarResNet(3), tiny_model()])
def test_a_complete_run_to_a_cut_can_be_resumed_to_the_output(model: nn.Module):
    torch.manual_seed(0)
    model.eval()
    program, modules, x = Program(model), dict(model.named_modules()), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        y = model(x)
        values, start = {program.input: x}, 0
        for cut in program.cuts:
            values, start = program.run(values, start, cut, modules, complete=True), cut.index
            assert set(values) >= set(cut.live)
            assert torch.equal(program.run(dict(values), start, None, modules)["output"], y)


def test_given_values_are_used_instead_of_running_their_steps():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    program, modules = Program(model), dict(model.named_modules())
    y = torch.randn(4, 3)
    values = program.run({program.input: torch.randn(4, 3), program.value_of("0"): y}, 0, None, modules)
    assert_close(values["output"], model[2](torch.relu(y)))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_architecture_has_a_cut_before_each_layer(name: str):
    cifar = name.startswith("cifar")
    model = build(
        Architecture(name, 10, stem="cifar" if cifar else "imagenet", shortcut="pad" if cifar else "projection")
    )
    layers = [layer for cut in Program(model).cuts for layer in cut.layers]
    expected = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(layers) == sorted(expected)


def test_a_network_without_layers_is_refused():
    with pytest.raises(ArchitectureError, match="no convolution or linear layer"):
        Program(nn.Sequential(nn.ReLU()))
