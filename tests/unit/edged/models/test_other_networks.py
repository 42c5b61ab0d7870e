import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from edged.errors import ArchitectureError, CheckpointError
from edged.models.inspection import inspect_checkpoint
from edged.models.other_networks import other_network, quantized_by
from edged.models.registry import recognize
from edged.models.resnet import BLOCKS, CifarResNet, ResNet
from edged.models.torchvision_shim import import_torchvision
from tests.support.refusals import refused


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if hasattr(tensor, "shape")}


def torchvisions(name):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision().models.get_model_builder(name)(weights=None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("alexnet", "AlexNet"), ("vgg16_bn", "VGG"), ("densenet121", "DenseNet"), ("googlenet", "GoogLeNet")),
        *(("inception_v3", "Inception"), ("mobilenet_v2", "MobileNetV2"), ("mobilenet_v3_small", "MobileNetV3")),
        *(("efficientnet_b0", "EfficientNet"), ("convnext_tiny", "ConvNeXt"), ("vit_b_32", "vision transformer")),
        *(("swin_t", "Swin"), ("swin_v2_t", "Swin"), ("shufflenet_v2_x0_5", "ShuffleNet"), ("mnasnet0_5", "MNASNet")),
        ("squeezenet1_0", "SqueezeNet"),
    ],
)
def test_torchvisions_networks_are_named(name, text):
    assert text in (other_network(shapes_of(torchvisions(name))) or "")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet152"])
def test_networks_that_edged_reads_are_none_of_them(name):
    assert other_network(shapes_of(torchvisions(name))) is None
    assert other_network(shapes_of(CifarResNet(3))) is None


def bottlenecks():
    with torch.device("meta"):
        return shapes_of(ResNet(BLOCKS["bottleneck"], (3, 4, 6, 3), 10))


def deep_stem(shapes):
    """As timm's resnet50d: a stem of three convolutions, and pooling before the convolution of a shortcut."""
    changed = {
        name.replace("downsample.1.", "downsample.2.").replace("downsample.0.", "downsample.1."): shape
        for name, shape in shapes.items()
        if not name.startswith("conv1.")
    }
    return {
        "conv1.0.weight": (32, 3, 3, 3),
        "conv1.3.weight": (32, 32, 3, 3),
        "conv1.6.weight": (64, 32, 3, 3),
    } | changed


def with_tensor(name, shape=(4,)):
    return lambda shapes: shapes | {name: shape}


# Names as timm and the networks' own repositories write them.
VARIANTS = {
    "resnet50d": deep_stem,
    "resnext50d": lambda shapes: deep_stem(shapes) | {"layer1.0.conv2.weight": (128, 4, 3, 3)},
    "SE-ResNet": with_tensor("layer1.0.se.fc1.weight", (16, 256, 1, 1)),
    "ECA-ResNet": with_tensor("layer1.0.eca.conv.weight", (1, 1, 3)),
    "ResNeSt": with_tensor("layer1.0.conv2.fc1.weight", (32, 64, 1, 1)),
    "SKNet": with_tensor("layer1.0.conv2.paths.0.conv.weight", (64, 64, 3, 3)),
    "Res2Net": with_tensor("layer1.0.convs.0.weight", (26, 26, 3, 3)),
    "CBAM": with_tensor("layer1.0.sa.conv1.weight", (1, 2, 7, 7)),
    "CLIP": with_tensor("attnpool.c_proj.weight", (8, 8)),
    "normalization": lambda shapes: {name: shape for name, shape in shapes.items() if "running" not in name},
    "pre-activation": lambda shapes: {name: shape for name, shape in shapes.items() if not name.startswith("bn1.")},
    "YOLOv8": lambda _: {"model.0.conv.weight": (16, 3, 3, 3), "model.22.dfl.conv.weight": (1, 16, 1, 1)},
    "U-Net": lambda _: {"inc.double_conv.0.weight": (64, 3, 3, 3), "down1.maxpool_conv.1.double_conv.0.weight": (9,)},
    "LoRA": lambda _: {"base.layers.0.q_proj.lora_A.weight": (8, 8)},
    "language model": lambda _: {"model.embed_tokens.weight": (8, 8)},
}


@pytest.mark.parametrize("text", VARIANTS)
def test_variants_are_named_in_the_rejection(text, tmp_path):
    shapes = {f"model.{name}": shape for name, shape in VARIANTS[text](bottlenecks()).items()}
    assert text in (other_network(shapes) or "")
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if shape or "model" in name}
    torch.save(
        {"state_dict": {name: tensor for name, tensor in tensors.items() if tensor.numel()}}, tmp_path / "m.ckpt"
    )
    with pytest.raises(ArchitectureError, match=rf"{text}.*edged reads ResNet-18 to -152, CIFAR ResNets and YOLOv5"):
        inspect_checkpoint(tmp_path / "m.ckpt")


class VGG(nn.Sequential):
    """A stack of convolutions under the names of torchvision's VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(8)))


def test_the_advice_for_a_whole_module_is_no_dead_end(tmp_path):
    torch.save(VGG(), tmp_path / "m.pt")
    reason = refused(tmp_path / "m.pt")
    assert "a VGG, which edged does not know" in reason
    assert "state_dict" not in reason


def test_the_nearest_network_is_named_with_what_fits_nothing(tmp_path):
    state = CifarResNet(3).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("layer3.2.")}
    torch.save({**state, "layer9.weight": torch.zeros(3)}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"tensors that fit nothing: 'layer9\.weight'"):
        inspect_checkpoint(tmp_path / "m.pt")
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"nearest is cifar_resnet20, \d+ of its \d+ tensors fit; .*: none"):
        inspect_checkpoint(tmp_path / "m.pt")


class Quantizable(nn.Module):
    """A small network that torch.ao can quantize in each of its ways."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv1(self.quant(x)).mean((2, 3))
        return self.dequant(self.fc(x))


def quantized(way):
    ao = torch.ao.quantization
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    model = Quantizable().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated; its files are not
        if way == "dynamic":
            return ao.quantize_dynamic(model, {nn.Linear}).state_dict()
        model.qconfig = ao.get_default_qconfig(torch.backends.quantized.engine)
        prepared = ao.prepare(model)
        prepared(torch.zeros(1, 3, 8, 8))
        return prepared.state_dict() if way == "observed" else ao.convert(prepared).state_dict()


@pytest.mark.parametrize("way", ["dynamic", "static", "observed"])
def test_networks_that_torch_has_quantized_are_named(way, tmp_path):
    torch.save(quantized(way), tmp_path / "m.pt")
    assert "the network is quantized already (by torch.ao" in refused(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("parts", "tool"),
    [
        ({"fc.qweight": torch.int32, "fc.qzeros": torch.int32, "fc.scales": torch.float16}, "GPTQ or AWQ"),
        ({"fc.weight": torch.int8, "fc.SCB": torch.float32}, "bitsandbytes"),
        ({"fc.weight": torch.uint8, "fc.weight.absmax": torch.float32}, "bitsandbytes"),
        ({"fc.weight": torch.int8, "fc.weight_scale": torch.float32}, "compressed-tensors"),
        ({"fc.weight._data": torch.int8, "fc.weight._scale": torch.float32}, "optimum-quanto"),
        (
            {"fc.weight": torch.float32, "fc.input_quantizer._amax": torch.float32},
            "NVIDIA's ModelOpt",
        ),
        (
            {"fc.weight": torch.float32, "fc.act_quant.fused_activation_quant_proxy.x": torch.float32},
            "Brevitas",
        ),
        (
            {"fc.weight": torch.float32, "fc.step_size": torch.float32},
            "training that learns steps, such as LSQ or PACT",
        ),
        ({"fc.weight.codes": torch.uint8, "fc.weight.scale": torch.float32}, "edged, of one of its own artifacts"),
    ],
)
def test_networks_that_other_tools_have_quantized_are_named(parts, tool, tmp_path):
    save_file({name: torch.ones(4, 4).to(dtype) for name, dtype in parts.items()}, tmp_path / "m.safetensors")
    reason = refused(tmp_path / "m.safetensors")
    assert f"the network is quantized already (by {tool})" in reason
    assert "give the checkpoint of full precision" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"pruned .*call prune\.remove"),
        (lambda layer: torch.nn.utils.weight_norm(layer), r"normalized .*call remove_weight_norm"),
        (lambda layer: parametrizations.orthogonal(layer), r"parametrized .*call remove_parametrizations"),
    ],
    ids=["pruned", "weight norm", "parametrized"],
)
def test_weights_that_are_computed_of_others_get_the_call_that_removes_it(change, reason, tmp_path):
    model = CifarResNet(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm is deprecated; its files are not
        for layer in (model.conv1, model.layer1[0].conv1):
            change(layer)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=f"{reason}.*then save its state_dict"):
        inspect_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["loss.scale", "criterion.step_size", "metric.act_quant.scale"])
def test_a_loss_that_has_a_scale_does_not_make_its_network_a_quantized_one(name, tmp_path):
    torch.save({"state_dict": {**CifarResNet(3).state_dict(), name: torch.ones(1)}}, tmp_path / "m.pt")
    assert inspect_checkpoint(tmp_path / "m.pt").to_dict()["left_out"] == [name]


def test_a_second_head_whose_weights_are_computed_of_others_is_what_fits_nothing(tmp_path):
    """The network's own weights are as they should be, so there is nothing to remove from its layers."""
    projector = {"projector.last_layer.weight_g": torch.ones(3, 1), "projector.last_layer.weight_v": torch.ones(3, 64)}
    torch.save({"state_dict": {**CifarResNet(3).state_dict(), **projector}}, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError, match=r"tensors that fit nothing: 'projector\.last_layer\.weight_g'"):
        inspect_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("block", "blocks", "name"),
    [
        ("bottleneck", (2, 2, 2, 2), "resnet26"),
        ("basic", (1, 1, 1, 1), "resnet10"),
        ("bottleneck", (1, 1, 1, 1), "resnet14"),
        ("bottleneck", (3, 24, 36, 3), "resnet200"),
    ],
)
def test_published_resnets_of_other_depths_are_named(block, blocks, name):
    with torch.device("meta"):
        state = ResNet(BLOCKS[block], blocks, 10).state_dict()
    with pytest.raises(ArchitectureError, match=rf"it is a {name}, which edged does not know; give one of resnet18,"):
        recognize(state)


def test_networks_of_full_precision_are_not_quantized():
    assert quantized_by(CifarResNet(3).state_dict()) is None
    assert quantized_by([]) is None


def test_recognition_comes_before_the_values(tmp_path):
    state = {"decoder.weight": torch.full((4, 4), float("nan"))}
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(ArchitectureError):
        inspect_checkpoint(tmp_path / "m.pt")
    torch.save(CifarResNet(3).state_dict() | {"bn1.bias": torch.full((16,), float("nan"))}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="NaN"):
        inspect_checkpoint(tmp_path / "m.pt")
