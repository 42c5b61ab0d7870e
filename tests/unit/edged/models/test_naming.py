import re

import pytest
import torch

from edged.models.naming import find_networks
from edged.models.resnet import BLOCKS, CifarResNet, ResNet


def shapes_of(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def resnet18(**options):
    with torch.device("meta"):
        return ResNet(BLOCKS["basic"], (2, 2, 2, 2), 10, **options).state_dict()


def expected(state):
    return {name for name in state if not name.endswith("num_batches_tracked")}


def only(shapes):
    (network,) = find_networks(shapes)
    return network


def as_transformers(name):
    parts = name.split(".")
    kinds = {"c": "convolution", "b": "normalization", "0": "convolution", "1": "normalization"}
    if parts[0] == "fc":
        return f"classifier.1.{parts[1]}"
    if not parts[0].startswith("layer"):
        return f"resnet.embedder.embedder.{kinds[parts[0][0]]}.{parts[1]}"
    base = f"resnet.encoder.stages.{int(parts[0][5:]) - 1}.layers.{parts[1]}."
    if parts[2] == "downsample":
        return f"{base}shortcut.{kinds[parts[3]]}.{parts[4]}"
    return f"{base}layer.{int(parts[2][-1]) - 1}.{kinds[parts[2][0]]}.{parts[3]}"


def as_children(name):
    first, _, rest = name.partition(".")
    if first == "fc":
        return f"1.2.{rest}"
    return f"0.{['conv1', 'bn1', '', '', 'layer1', 'layer2', 'layer3', 'layer4'].index(first)}.{rest}"


def as_mmpretrain(name):
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"


def as_residual_function(name):
    """As weiaicunzai's pytorch-cifar100."""
    first, _, rest = name.partition(".")
    if first in ("conv1", "bn1"):
        return f"conv1.{'0' if first == 'conv1' else '1'}.{rest}"
    if not first.startswith("layer"):
        return name
    block, part, rest = rest.split(".", 2)
    place = f"conv{int(first[5:]) + 1}_x.{block}"
    if part == "downsample":
        return f"{place}.shortcut.{rest}"
    return f"{place}.residual_function.{3 * (int(part[-1]) - 1) + part.startswith('bn')}.{rest}"


NAMINGS = {
    "torchvision": lambda name: name,
    "DataParallel": lambda name: f"module.{name}",
    "a chain of wrappers": lambda name: f"_orig_mod.module._fsdp_wrapped_module.model.backbone.{name}",
    "transformers": as_transformers,
    "fastai": as_children,
    "mmpretrain": as_mmpretrain,
    "weiaicunzai": as_residual_function,
    "weiaicunzai in DataParallel": lambda name: f"module.{as_residual_function(name)}",
    "compiled blocks": lambda name: re.sub(r"^(layer\d\.\d)\.", r"\1._orig_mod.", name),
    "checkpointed stages": lambda name: re.sub(r"^(layer\d)\.", r"module.\1._checkpoint_wrapped_module.", name),
    "a parallel body": lambda name: name if name.startswith("fc.") else f"features.module.{name}",
    "kuangliu": lambda name: name.replace("downsample", "shortcut").replace("fc.", "linear."),
    "a tutorial": lambda name: name.replace("downsample", "identity_downsample"),
    "skip": lambda name: name.replace("downsample", "skip"),
    "dropout before the head": lambda name: name.replace("fc.", "fc.1."),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_network(naming):
    state = resnet18()
    renamed = {NAMINGS[naming](name): shape for name, shape in shapes_of(state).items()}
    network = only(renamed)
    assert network.fits
    assert network.names.keys() == expected(state)
    assert {NAMINGS[naming](name): stored for name, stored in network.names.items()} == {
        stored: stored for stored in network.names.values()
    }
    assert network.left_out == ()


def test_bottlenecks_of_weiaicunzai_are_those_of_torchvision():
    with torch.device("meta"):
        state = ResNet(BLOCKS["bottleneck"], (3, 4, 6, 3), 100, stem="small").state_dict()
    renamed = {as_residual_function(name): shape for name, shape in shapes_of(state).items()}
    network = only(renamed)
    assert network.fits
    assert {name: renamed[stored] for name, stored in network.names.items()} == {
        name: shape for name, shape in shapes_of(state).items() if not name.endswith("num_batches_tracked")
    }


def test_names_that_a_wrapper_would_make_equal_are_left_alone():
    shapes = shapes_of(resnet18())
    twice = shapes | {f"module.{name}": shape for name, shape in shapes.items()}
    assert [network.prefix for network in find_networks(twice)] == ["", "module."]


@pytest.mark.parametrize("head", ["fc", "linear"])
@pytest.mark.parametrize("shortcut", ["downsample", "shortcut"])
def test_networks_for_cifar_get_their_own_names(head, shortcut):
    with torch.device("meta"):
        state = CifarResNet(3, shortcut="projection").state_dict()
    renamed = {
        name.replace("linear", head).replace("shortcut", shortcut): shape for name, shape in shapes_of(state).items()
    }
    assert only(renamed).names.keys() == expected(state)


OTHER_TENSORS = {
    "criterion.weight": (10,),
    "loss.centers": (10, 512),
    "train_acc.correct": (),
    "val_metrics.confmat": (10, 10),
    "n_averaged": (),
    "model.total_ops": (1,),
    "model.layer1.0.conv1.total_params": (1,),
    "ema_decay": (),
    "mean": (1, 3, 1, 1),
    "preprocess.std": (1, 3, 1, 1),
}


def test_tensors_next_to_a_network_are_left_out_and_named():
    shapes = {f"model.{name}": shape for name, shape in shapes_of(resnet18()).items()}
    network = only(shapes | OTHER_TENSORS)
    assert network.fits
    assert set(network.left_out) == set(OTHER_TENSORS)


@pytest.mark.parametrize(
    "more",
    [
        {"model.decoder.0.weight": (4, 4)},
        {"model.layer1.0.se.fc1.weight": (4, 64, 1, 1)},
        {"model.pool.p": (1,)},
        {"model.layer1.0.conv9x.weight": (4, 64, 1, 1)},
    ],
)
def test_unknown_tensors_of_the_network_are_named(more):
    shapes = {f"model.{name}": shape for name, shape in shapes_of(resnet18()).items()}
    network = only(shapes | more)
    assert not network.fits
    assert [*network.unknown, *network.heads] == list(more)


@pytest.mark.parametrize(
    "head",
    [
        {"fc.0.weight": (256, 512), "fc.0.bias": (256,), "fc.3.weight": (10, 256), "fc.3.bias": (10,)},
        {"fc.1.weight": (10, 512), "fc.0.weight": (512,), "fc.0.running_mean": (512,)},
        {"fc.weight": (10, 512), "classifier.weight": (4, 512)},
    ],
)
def test_a_head_of_several_layers_is_not_guessed(head):
    shapes = {name: shape for name, shape in shapes_of(resnet18()).items() if not name.startswith("fc.")}
    network = only(shapes | head)
    assert not network.fits
    assert network.heads


def test_a_body_without_a_head_does_not_fit():
    shapes = {name: shape for name, shape in shapes_of(resnet18()).items() if not name.startswith("fc.")}
    assert not only(shapes).fits


def test_two_networks_are_found_apart():
    shapes = shapes_of(resnet18())
    both = {f"{name}.{key}": shape for name in ("student", "teacher") for key, shape in shapes.items()}
    assert [(network.prefix, network.fits) for network in find_networks(both)] == [
        ("student.", True),
        ("teacher.", True),
    ]


@pytest.mark.parametrize("shapes", [{}, {"a.weight": (3, 4)}, {"conv1.weight": (64, 3, 7, 7)}])
def test_other_tensors_are_no_network(shapes):
    assert find_networks(shapes) == []
