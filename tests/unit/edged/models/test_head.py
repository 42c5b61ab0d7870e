"""Heads of several layers: recognized with the user's description, and computed as the network that was saved."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edged.errors import ArchitectureError, UsageError
from edged.models.architecture import Architecture
from edged.models.head import head_of, pool_of
from edged.models.head_description import checked_head, linear
from edged.models.inspection import inspect_checkpoint
from edged.models.loading import load_checkpoint
from edged.models.resnet import CifarResNet
from edged.models.torchvision_shim import import_torchvision
from edged.spec import Choice


class ConcatPool(nn.Module):
    """As fastai's documentation has it."""

    def forward(self, x):
        return torch.cat([nn.functional.adaptive_max_pool2d(x, 1), nn.functional.adaptive_avg_pool2d(x, 1)], 1)


def lively(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def with_head(*layers):
    model = import_torchvision().models.resnet18(num_classes=10)
    model.fc = nn.Sequential(*layers)
    return lively(model)


def fastai():
    body = nn.Sequential(*list(import_torchvision().models.resnet18().children())[:-2])
    return lively(
        nn.Sequential(
            body,
            nn.Sequential(
                *(ConcatPool(), nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(0.25)),
                *(nn.Linear(1024, 512, bias=False), nn.ReLU(inplace=True), nn.BatchNorm1d(512), nn.Dropout(0.5)),
                nn.Linear(512, 7, bias=False),
            ),
        )
    )


def small(head):
    model = CifarResNet(3)
    model.linear = head
    return lively(model)


HEADS = {
    "linear,relu,dropout,linear": lambda: with_head(nn.Linear(512, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)),
    "dropout,linear,batchnorm,silu,linear": lambda: with_head(
        nn.Dropout(0.3), nn.Linear(512, 64), nn.BatchNorm1d(64), nn.SiLU(), nn.Linear(64, 10, bias=False)
    ),
    "batchnorm,linear": lambda: with_head(nn.BatchNorm1d(512), nn.Linear(512, 3)),
    "concat_pool,flatten,batchnorm,dropout,linear,relu,batchnorm,dropout,linear": fastai,
    "linear,gelu,linear": lambda: small(nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 10))),
    "linear,leaky_relu,linear,tanh,linear": lambda: with_head(
        *(nn.Linear(512, 32), nn.LeakyReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4))
    ),
}


@pytest.mark.parametrize("words", HEADS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_described_head_computes_what_was_saved(words, suffix, tmp_path):
    reference = HEADS[words]()
    path = tmp_path / f"m{suffix}"
    if suffix == ".pt":
        torch.save(reference.state_dict(), path)
    else:
        save_file(reference.state_dict(), path)
    x = torch.randn(3, 3, 40, 40)
    expected = copy.deepcopy(reference)(x)
    network = load_checkpoint(path, choice=Choice(head=tuple(words.split(","))))
    torch.testing.assert_close(network.model(x), expected)
    data = network.architecture.to_dict()
    assert Architecture.from_dict(data) == network.architecture
    assert inspect_checkpoint(path, choice=network.choice).to_dict()["head"] == data["head"]


def test_one_linear_layer_without_a_bias_needs_no_description(tmp_path):
    reference = import_torchvision().models.resnet18(num_classes=10)
    reference.fc = nn.Linear(512, 10, bias=False)
    torch.save(lively(reference).state_dict(), tmp_path / "m.pt")
    network = load_checkpoint(tmp_path / "m.pt")
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(network.model(x), reference(x))
    assert network.architecture.to_dict()["head"] == ["linear:10:nobias"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "",
            r"several layers \(linear 512 -> 64 at 'fc.0', linear 64 -> 10 at 'fc.3'\).*head: \[linear, relu, linear\]",
        ),
        ("linear,batchnorm,linear", r"head: \[linear, batchnorm, linear\] does not fit the head of the file"),
        ("linear,relu,linear,relu,linear", "does not fit the head of the file"),
    ],
)
def test_a_head_that_is_not_described_is_rejected(words, message, tmp_path):
    torch.save(HEADS["linear,relu,dropout,linear"]().state_dict(), tmp_path / "m.pt")
    choice = Choice(head=tuple(words.split(",")) if words else ())
    with pytest.raises(ArchitectureError, match=message):
        load_checkpoint(tmp_path / "m.pt", choice=choice)


def test_the_suggestion_for_fastai_is_its_own_head(tmp_path):
    torch.save(fastai().state_dict(), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"head: \[concat_pool, batchnorm, linear, relu, batchnorm, linear\]"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_description_of_a_head_with_one_layer_is_rejected(tmp_path):
    torch.save(CifarResNet(3).state_dict(), tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"head: \[linear, relu, linear\] does not fit .* linear 64 -> 10"):
        load_checkpoint(tmp_path / "m.pt", choice=Choice(head=("linear", "relu", "linear")))
    assert load_checkpoint(tmp_path / "m.pt", choice=Choice(head=("dropout", "linear"))).architecture.head == ()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (("linear", "softmax"), "head has the layer 'softmax'"),
        (("relu",), "one of them linear"),
        (("linear",) * 40, "give 1 to 32"),
        (("linear", "concat_pool", "linear"), "it must be the first"),
    ],
)
def test_impossible_descriptions_are_rejected(head, message):
    with pytest.raises(UsageError, match=message):
        Choice(head=head)


@pytest.mark.parametrize(
    "head", [("linear:9",), ("linear:10", "relu", "linear:5"), ("os.system", "linear:10"), ("relu",), (3, "linear:10")]
)
def test_impossible_heads_of_a_manifest_are_rejected(head):
    with pytest.raises(ArchitectureError, match="head has"):
        checked_head(head, 10)


def test_parts_of_a_head():
    checked_head((), 10)
    checked_head(("concat_pool", linear(4, bias=True), "relu", linear(10, bias=False)), 10)
    head = head_of(("concat_pool", "batchnorm", "linear:4:nobias", "relu", "linear:10"), 8, 10)
    assert [type(layer).__name__ for layer in head] == ["BatchNorm1d", "Linear", "ReLU", "Linear"]
    assert (head[0].num_features, head[1].in_features, head[1].bias) == (16, 16, None)
    assert type(pool_of(())) is nn.AdaptiveAvgPool2d
