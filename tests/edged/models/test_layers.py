import torch
from torch import nn

from edged.models.layers import quantizable_layers
from edged.models.registry import Architecture, build


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
