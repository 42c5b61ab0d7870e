import pytest
import torch
from torch import nn

from edged.errors import ArchitectureError
from edged.models.architecture import CLASSIFIERS, Architecture
from edged.models.registry import build, load_model, recognize
from edged.models.resnet import CifarResNet
from edged.models.torchvision_shim import import_torchvision
from edged.spec import Choice, InputSpec

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CIFAR = {"cifar_resnet20": 3, "cifar_resnet32": 5, "cifar_resnet44": 7, "cifar_resnet56": 9, "cifar_resnet110": 18}


def torchvision_model(name: str, classes: int, stem: str = "imagenet", channels: int = 3) -> nn.Module:
    model = getattr(import_torchvision().models, name)(num_classes=classes)
    if stem == "small":
        model.conv1, model.maxpool = nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return model.eval()


def lively(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics and weights that differ from layer to layer."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize(("classes", "stem", "channels"), [(1000, "imagenet", 3), (1, "small", 3), (7, "imagenet", 1)])
def test_every_torchvision_resnet_is_recognized(name, classes, stem, channels):
    with torch.device("meta"):
        state = torchvision_model(name, classes, stem, channels).state_dict()
    assert recognize(state) == Architecture(name, classes, stem, channels, "projection")
    assert recognize(state, name).name == name


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
@pytest.mark.parametrize("classes", [10, 37])
def test_every_cifar_resnet_is_recognized(name, shortcut, classes):
    with torch.device("meta"):
        state = CifarResNet(CIFAR[name], classes, 3, shortcut).state_dict()
    assert recognize(state) == Architecture(name, classes, "cifar", 3, shortcut)


@pytest.mark.parametrize(("name", "stem", "channels"), [("resnet18", "small", 1), ("resnet50", "imagenet", 3)])
def test_outputs_equal_torchvisions(name, stem, channels):
    reference = lively(torchvision_model(name, 5, stem, channels))
    state = reference.state_dict()
    x = torch.randn(2, channels, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model(state, recognize(state))(x), reference(x))


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_stride_in_the_first_convolution_is_that_of_resnet_v1(stem):
    reference = lively(torchvision_model("resnet50", 5, stem))
    for module in reference.modules():
        if type(module).__name__ == "Bottleneck":
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    state = reference.state_dict()
    x = torch.randn(2, 3, 45, 45)
    with torch.no_grad():
        usual, chosen = (
            load_model(state, recognize(state, choice=choice))(x) for choice in (None, Choice(stride_in="1x1"))
        )
        assert torch.equal(chosen, reference(x))
    assert not torch.allclose(usual, chosen)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("pooled", [True, False])
def test_pooling_after_the_stem_can_be_chosen(stem, pooled):
    reference = lively(torchvision_model("resnet18", 5, stem))
    reference.maxpool = nn.MaxPool2d(3, 2, 1) if pooled else nn.Identity()
    state, x = reference.state_dict(), torch.randn(2, 3, 45, 45)
    architecture = recognize(state, choice=Choice(stem_pooling=str(pooled).lower()))
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    with torch.no_grad():
        assert torch.equal(load_model(state, architecture)(x), reference(x))


def test_loaded_model_is_ready_for_inference():
    state = lively(CifarResNet(3)).state_dict()
    model = load_model(state, recognize(state))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.conv1.weight.data_ptr() == state["conv1.weight"].data_ptr()  # no copy
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_counters_of_old_checkpoints_may_be_missing():
    state = {k: v for k, v in CifarResNet(3).state_dict().items() if not k.endswith("num_batches_tracked")}
    model = load_model(state, recognize(state))
    assert model.bn1.num_batches_tracked.item() == 0
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_counters_are_kept(dtype):
    state = cifar_state() | {"bn1.num_batches_tracked": torch.tensor(7, dtype=dtype)}
    counter = load_model(state, recognize(state)).bn1.num_batches_tracked
    assert (counter.item(), counter.dtype) == (7, torch.int64)


@pytest.mark.parametrize("stored", [torch.tensor(7.0), torch.tensor([7]), torch.tensor(True), torch.zeros(0)])
def test_other_counters_become_zero(stored):
    state = cifar_state() | {"bn1.num_batches_tracked": stored}
    counter = load_model(state, recognize(state)).bn1.num_batches_tracked
    assert (counter.item(), counter.dtype, counter.shape) == (0, torch.int64, ())


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20"])
def test_build_gives_memory_that_can_be_filled(name):
    architecture = Architecture(name, 4, "cifar" if "cifar" in name else "imagenet")
    model = build(architecture)
    assert not model.training
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert recognize(model.state_dict()) == architecture


def test_the_transformation_of_an_artifacts_logits_is_loaded() -> None:
    factors = {name: torch.rand(5, 10) for name in ("centroids", "gain", "shift")}
    state = cifar_state() | {f"correction.{name}": value for name, value in factors.items()}
    architecture = Architecture("cifar_resnet20", 10, "cifar", shortcut="pad")
    model = load_model(state, architecture)
    torch.testing.assert_close(dict(model.correction.named_buffers()), factors, rtol=0, atol=0)
    del state["correction.gain"]
    with pytest.raises(ArchitectureError, match=r"needs tensor 'correction\.gain', which is missing"):
        load_model(state, architecture)
    wide = torch.rand(5, 11)
    with pytest.raises(ArchitectureError, match=r"'correction\.gain' of shape \[5, 10\]; it has \[5, 11\]"):
        load_model(state | {"correction.gain": wide}, architecture)


def cifar_state() -> dict[str, torch.Tensor]:
    return CifarResNet(3).state_dict()


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no tensor at all"),
        ({"a\nb": torch.zeros(1)}, r"'a\\nb'"),
        (without(cifar_state(), "layer2.1.bn2.weight"), "needs tensor 'layer2.1.bn2.weight', which is missing"),
        (without(cifar_state(), "layer2.1.conv1.weight"), r"basic blocks \[3, 1, 3, 0\]"),
        (without(cifar_state(), "linear.weight"), "needs tensor 'linear.weight', which is missing"),
        ({**cifar_state(), "extra": torch.zeros(1)}, "has no tensor 'extra'"),
        ({**cifar_state(), "correction.centroids": torch.zeros(2, 10)}, "has no tensor 'correction.centroids'"),
        ({**cifar_state(), "bn1.bias": torch.zeros(17)}, r"'bn1.bias' of shape \[16\]; it has \[17\]"),
        ({**cifar_state(), "conv1.weight": torch.zeros(16, 3)}, "needs 4 dimensions in 'conv1.weight'"),
        ({**cifar_state(), "conv1.weight": torch.zeros(16, 5, 3, 3)}, "in_channels has value 5"),
        ({**cifar_state(), "bn1.bias": torch.zeros(16, dtype=torch.int64)}, "'bn1.bias' as torch.float32"),
        ({**cifar_state(), "linear.bias": torch.zeros(9)}, "'linear.bias'"),
    ],
)
def test_the_first_different_tensor_is_named(state, message):
    with pytest.raises(ArchitectureError, match=message) as caught:
        recognize(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2", "vgg11"])
def test_other_networks_are_refused_by_a_name_or_shape(name):
    with torch.device("meta"):
        state = getattr(import_torchvision().models, name)(num_classes=10).state_dict()
    with pytest.raises(ArchitectureError, match=rf"needs tensor 'layer1.0|fit no supported network|it is a {name}"):
        recognize(state)


def test_pinned_name_must_be_known_and_fit():
    with pytest.raises(ArchitectureError, match=r"unknown architecture 'resnet19'; did you mean 'resnet18'"):
        recognize(cifar_state(), "resnet19")
    for pinned in ("cifar_resnet32", "resnet18"):
        with pytest.raises(ArchitectureError, match=f"holds a cifar_resnet20, not the {pinned} that was asked for"):
            recognize(cifar_state(), pinned)


@pytest.mark.parametrize("name", ["model.0.conv.weight", "0.conv.weight", "model.0.conv.conv.weight"])
def test_a_state_dict_of_a_yolov5_gets_advice_that_works(name):
    with pytest.raises(ArchitectureError, match=r"known by its yaml.*give the \.pt that its training saved"):
        recognize({name: torch.zeros(16, 3, 6, 6)})


def test_load_model_refuses_what_does_not_fit():
    with pytest.raises(ArchitectureError, match=r"'linear.weight' of shape \[9, 64\]; it has \[10, 64\]"):
        load_model(cifar_state(), Architecture("cifar_resnet20", 9, "cifar", shortcut="pad"))


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (Architecture("resnet18", 10), InputSpec(224, 256)),
        (Architecture("resnet18", 10, "small"), InputSpec(32, 32)),
        (Architecture("cifar_resnet20", 10, "cifar", shortcut="pad"), InputSpec(32, 32)),
        (Architecture("resnet18", 10, "small", 1), InputSpec(32, 32, (0.449,), (0.226,))),
    ],
)
def test_default_input(architecture, expected):
    assert architecture.default_input == expected
    assert architecture.task == "classification"
    assert architecture.in_channels == expected.channels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_dict_and_back(name):
    cifar = name in CIFAR
    architecture = Architecture(name, 3, "cifar" if cifar else "small", 1, "pad" if cifar else "projection")
    assert Architecture.from_dict(architecture.to_dict()) == architecture


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("name", "vgg"), ("num_classes", 0), ("num_classes", "3"), ("num_classes", True), ("extra", 1)),
        *(("stem", "cifar"), ("stem", None), ("in_channels", 5), ("shortcut", "pad")),
    ],
)
def test_impossible_dicts_are_refused_by_key(key, value):
    data = Architecture("resnet18", 3).to_dict() | {key: value}
    with pytest.raises(ArchitectureError, match=key):
        Architecture.from_dict(data)
