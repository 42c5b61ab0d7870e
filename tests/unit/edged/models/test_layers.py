from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edged.models.architecture import Architecture
from edged.models.checkpoint import read_checkpoint
from edged.models.layers import own_memory, quantizable_layers
from edged.models.registry import build, load_model, recognize
from edged.models.resnet import CifarResNet


def test_convolutions_and_linear_layers_in_order():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Linear(2, 3)), nn.ConvTranspose2d(1, 1, 1)
    )
    assert list(quantizable_layers(model)) == ["0", "2.1"]


def test_order_is_the_order_of_execution_in_resnets():
    for name, size in (("resnet18", 33), ("resnet50", 33), ("cifar_resnet20", 32)):
        model = build(Architecture(name, 10, "cifar" if size == 32 else "imagenet"))
        seen: list[str] = []
        layers = quantizable_layers(model)
        for key, layer in layers.items():
            layer.register_forward_hook(lambda *_, key=key, seen=seen: seen.append(key))
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
        assert seen == list(layers)
        assert len(layers) == {"resnet18": 21, "resnet50": 54, "cifar_resnet20": 22}[name]  # with projections


def test_a_model_with_its_own_memory_releases_the_file(tmp_path: Path):
    path = tmp_path / "resnet20.pth"
    torch.manual_seed(0)
    original = CifarResNet(3).state_dict()
    torch.save(original, path)
    checkpoint = read_checkpoint(path)
    model = load_model(checkpoint.state, recognize(checkpoint.state))
    assert is_mapped(path)
    assert own_memory(model) is model
    del checkpoint
    assert not is_mapped(path)
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert model.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def is_mapped(path: Path) -> bool:
    return path.name in Path("/proc/self/maps").read_text()
