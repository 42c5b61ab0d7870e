"""Recognize by their tensors' names what edged does not read: other networks, and quantized ones. Only for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

ADVICE = "edged reads ResNet-18 to -152, CIFAR ResNets and YOLOv5; train one of them for this task"

# A pattern that occurs in the names of a network's tensors -> what the network is. The first that occurs counts.
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(lora_A|lora_B|lora_down|lora_up)\b", "a LoRA adapter, which holds no network"),
    (r"(^|\.)model\.diffusion_model\.|(^|\.)unet\.", "a diffusion model"),
    (r"(^|\.)(embed_tokens|wte|word_embeddings|lm_head)\.", "a language model"),
    (r"(^|\.)(rpn|roi_heads)\.", "a Faster or Mask R-CNN"),
    (r"(^|\.)(bbox_head|mask_head|bbox_embed)\.", "a detector that is no YOLOv5"),
    (r"(^|\.)head\.(classification_head|regression_head)\.", "a detector that is no YOLOv5"),
    (r"(^|\.)(decode_head|aux_classifier|auxiliary_head)\.|^classifier\.(cbr|0\.convs)\.", "a segmentation network"),
    (r"(^|\.)model\.\d+\.(dfl\.|cv[23]\.\d\.\d\.|one2one)", "a YOLOv8 or later model"),
    (r"(^|\.)backbone\.(backbone\.)?(stem|dark\d)\.", "a YOLOX"),
    (r"(^|\.)layer\d\.\d+\.(se|se_module|SE)\.", "an SE-ResNet (squeeze and excitation)"),
    (r"(^|\.)layer\d\.\d+\.eca\.", "an ECA-ResNet"),
    (r"(^|\.)layer\d\.\d+\.(ca|sa|cbam|SpatialGate|ChannelGate)\.", "a ResNet with attention (CBAM)"),
    (r"(^|\.)layer\d\.\d+\.conv[12]\.paths\.", "an SKNet (selective kernels)"),
    (r"(^|\.)layer\d\.\d+\.conv2\.(conv|fc1|bn0)\.", "a ResNeSt"),
    (r"(^|\.)layer\d\.\d+\.convs\.\d", "a Res2Net"),
    (r"(^|\.)layer\d\.\d+\.bn1\.(IN|BN)\.", "an IBN-ResNet"),
    (r"(^|\.)attnpool\.", "a CLIP ResNet"),
    (r"(^|\.)layer\d\.\d+\.[\w.]*(\.aa\.|\.filt$)", "an anti-aliased ResNet (blur pooling)"),
    (r"(^|\.)layer\d\.\d+\.[\w.]*(offset|conv_offset)\.", "a ResNet with deformable convolutions"),
    (r"(^|\.)denseblock\d\.", "a DenseNet"),
    (r"(^|\.)Mixed_\d\w\.", "an Inception"),
    (r"(^|\.)inception\d\w\.", "a GoogLeNet"),
    (r"(^|\.)features\.\d+\.squeeze\.", "a SqueezeNet"),
    (r"(^|\.)stage\d\.\d+\.branch[12]\.", "a ShuffleNet"),
    (r"(^|\.)trunk_output\.|(^|\.)s[1-4]\.b\d+\.conv\d\.conv\.", "a RegNet"),
    (r"(^|\.)(relative_position_bias_table$|cpb_mlp\.)", "a Swin transformer or a similar one"),
    (r"(^|\.)(cls_token|class_token|pos_embed|pos_embedding|patch_embed\.[\w.]+)$", "a vision transformer"),
    (r"(^|\.)stages\.\d\.blocks\.\d+\.(gamma|conv_dw)", "a ConvNeXt"),
    (r"(^|\.)features\.\d\.\d+\.layer_scale$", "a ConvNeXt"),
    (r"(^|\.)stages\.\d\.blocks\.\d+\.norm1\.", "a ResNet v2 (pre-activation, BiT)"),
    (
        r"(^|\.)features\.\d+\.(\d+\.)?block\.\d\.|(^|\.)_blocks\.\d+\._depthwise_conv\.",
        "an EfficientNet or MobileNetV3",
    ),
    (r"(^|\.)blocks\.\d+\.\d+\.(conv_dw|conv_pw)\.", "an EfficientNet or MobileNet"),
    (r"(^|\.)features\.\d+\.conv\.\d+(\.\d+)?\.", "a MobileNetV2"),
    (r"(^|\.)layers\.\d+\.\d+\.layers\.\d", "an MNASNet or a similar mobile network"),
    (r"(^|\.)block\d\.layer\.\d+\.conv\d\.", "a WideResNet for CIFAR (WRN)"),
    (r"(^|\.)encoder\.layer\.\d+\.attention\.|(^|\.)encoder\.layers\.encoder_layer_\d", "a transformer"),
    (r"(^|\.)(down|up|inc|outc)\d?\.(double_conv|maxpool_conv|conv)\.", "a U-Net"),
)
_STEM = re.compile(r"(^|\.)(conv1|stem)\.0\.(conv\.)?weight$")
_AFTER_POOLING = re.compile(r"(^|\.)layer\d\.0\.(downsample|shortcut)\.1\.weight$")
_BLOCK = re.compile(r"(?:^|\.)layer(\d)\.(\d+)\.conv1\.weight$")
_FIRST_NORM = "layer1.0.bn1.weight"
_DEPTHS: Mapping[tuple[int, ...], tuple[int, int]] = {
    (2, 2, 2, 2): (18, 26),  # with blocks of two convolutions, and of three
    (3, 4, 6, 3): (34, 50),
    (3, 4, 23, 3): (0, 101),
    (3, 8, 36, 3): (0, 152),
}

# Parts of names that only a quantized network has -> the tool that writes them.
_QUANTIZED: tuple[tuple[str, str], ...] = (
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.(SCB|weight_format|quant_map|absmax|quant_state(\.\w+)*)$", "bitsandbytes"),
    (r"\.(weight_packed|weight_scale|weight_zero_point|weight_shape)$", "compressed-tensors"),
    (r"\.weight\._(data|scale|shift)$", "optimum-quanto"),
    (r"\.weight\.(codes|scale|zero_point)$", "edged, of one of its own artifacts"),
    (r"\._packed_params(\.|$)", "torch.ao.quantization"),
    (r"(^|\.)(weight_fake_quant|activation_post_process|fake_quant_enabled|observer_enabled)(\.|$)", "torch.ao's QAT"),
    (r"(^|\.)(scale|zero_point)$", "torch.ao.quantization"),
    (r"(^|\.)(weight_scale|input_scale|scales|zeros|W_q)$", "a tool for quantization"),
    (r"(^|\.)(_input_quantizer|_weight_quantizer)\.", "NVIDIA's pytorch-quantization"),
    (r"(^|\.)(input_quantizer|weight_quantizer|output_quantizer)\._\w+$", "NVIDIA's ModelOpt"),
    (r"(^|\.)(weight_quant|act_quant|input_quant|output_quant)\.\w", "Brevitas"),
    (r"\.(step_size|lsq_\w+|clip_val|act_alpha)$", "training that learns steps, such as LSQ or PACT"),
)
# Parts of names that only a network has whose weights are computed of others -> how, and what to do.
_REPARAMETRIZED: tuple[tuple[str, str], ...] = (
    (
        r"\.weight_(orig|mask)$",
        "its weights are pruned by torch.nn.utils.prune (weight_orig, weight_mask); call prune.remove(module, 'weight')"
        " for each of its layers, then save its state_dict()",
    ),
    (
        r"\.weight_g$",
        "its weights are normalized by torch.nn.utils.weight_norm (weight_g, weight_v); call remove_weight_norm(module)"
        " for each of its layers, then save its state_dict()",
    ),
    (
        r"(^|\.)parametrizations\.",
        "its weights are parametrized by torch.nn.utils.parametrize; call remove_parametrizations(module, 'weight') for"
        " each of its layers, then save its state_dict()",
    ),
)


def other_network(shapes: Shapes) -> str | None:
    """Return what network tensors belong to, with an article, where it is a known one that edged does not read.

    Args:
        shapes: Shape of each tensor, by name.
    """
    for pattern, text in _SIGNS:
        if any(re.search(pattern, name) for name in shapes):
            return text
    if any(_STEM.search(name) for name in shapes) and (depth := _depth(shapes)) is not None:
        middle = next((shape for name, shape in shapes.items() if name.endswith("layer1.0.conv2.weight")), (1, 1))
        grouped = middle[:1] != middle[1:2]
        name = f"{'resnext' if grouped else 'resnet'}{depth or ''}"
        if any(_AFTER_POOLING.search(name) and len(shape) == 4 for name, shape in shapes.items()):
            return f"a {name}d (a stem of three convolutions, pooling in its shortcuts)"
        return f"a {name}c or a similar one (a stem of several convolutions)"
    return _other_plain_network(shapes)


def _other_plain_network(shapes: Shapes) -> str | None:
    """Recognize what has the names of a ResNet, or of a plain stack of convolutions."""
    first = next((name for name in shapes if name.endswith(_FIRST_NORM)), None)
    if first is not None and not any(name.endswith("running_mean") for name in shapes):
        return "a ResNet with another normalization than BatchNorm, or without its buffers (it has no running_mean)"
    if first is not None and first.removesuffix(_FIRST_NORM) + "bn1.weight" not in shapes:
        return "a pre-activation ResNet (no BatchNorm after its stem)"
    if any(len(shape) == 5 for shape in shapes.values()):
        return "a network for video (3D convolutions)"
    if any(len(shape) == 4 for name, shape in shapes.items() if re.search(r"(^|\.)classifier\.\d\.weight$", name)):
        return "a segmentation network, or another one with convolutions in its classifier"
    stack = {name: shape for name, shape in shapes.items() if re.search(r"(^|\.)features\.\d+\.weight$", name)}
    if any(len(shape) == 4 and shape[2:] == (11, 11) for shape in stack.values()):
        return "an AlexNet"
    if len([shape for shape in stack.values() if len(shape) == 4 and shape[2:] == (3, 3)]) >= 6:
        return "a VGG"
    return None


def _depth(shapes: Shapes) -> int | None:
    """Return the layers of a ResNet by its blocks, 0 where they are of no published one, None for no ResNet."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if match := _BLOCK.search(name):
            blocks[int(match[1])] = blocks.get(int(match[1]), 0) + 1
    if not blocks:
        return None
    bottleneck = any(name.endswith("layer1.0.conv3.weight") for name in shapes)
    basic, deep = _DEPTHS.get(tuple(blocks[stage] for stage in sorted(blocks)), (0, 0))
    return deep if bottleneck else basic


def reparametrized(names: Iterable[str]) -> str | None:
    """Return why the weights of a network are not in the file as such, and what to do; None if they are.

    Args:
        names: Names of its tensors.
    """
    known = list(names)
    return next((text for pattern, text in _REPARAMETRIZED if any(re.search(pattern, name) for name in known)), None)


def quantized_by(names: Iterable[str]) -> str | None:
    """Return the tool that has quantized a network, by the names of its tensors; None where none is recognized."""
    known = list(names)
    return next((tool for pattern, tool in _QUANTIZED if any(re.search(pattern, name) for name in known)), None)
