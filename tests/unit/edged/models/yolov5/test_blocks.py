import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from edged.models.yolov5.blocks import C3, SPP, SPPF, Bottleneck, Conv, Detect, Focus


def filled(module: nn.Module) -> nn.Module:
    """Random tensors everywhere, eval mode."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5 if name.endswith("var") else -0.5, 1.0, generator=generator)
    return module.eval()


def test_conv_is_convolution_then_batchnorm_then_silu():
    conv = filled(Conv(3, 8, 3, 2))
    x = torch.randn(2, 3, 9, 9)
    y = functional.conv2d(x, conv.conv.weight, stride=2, padding=1)
    mean, var, scale, shift = (
        value[:, None, None] for value in (conv.bn.running_mean, conv.bn.running_var, conv.bn.weight, conv.bn.bias)
    )
    normal = (y - mean) / (var + 1e-3).sqrt() * scale + shift
    assert_close(conv(x), normal * torch.sigmoid(normal))


def test_padding_may_be_given():
    assert Conv(3, 8, 6, 2, 2)(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 16, 16)


@pytest.mark.parametrize(
    ("c1", "c2", "shortcut", "added"), [(8, 8, True, True), (8, 8, False, False), (8, 4, True, False)]
)
def test_bottleneck_adds_its_input_where_it_may(c1, c2, shortcut, added):
    block = filled(Bottleneck(c1, c2, shortcut))
    x = torch.randn(1, c1, 6, 6)
    inner = block.cv2(block.cv1(x))
    assert_close(block(x), x + inner if added else inner)


def test_c3_joins_its_branches():
    block = filled(C3(6, 8, 2))
    x = torch.randn(1, 6, 5, 5)
    expected = block.cv3(torch.cat((block.m[1](block.m[0](block.cv1(x))), block.cv2(x)), 1))
    assert_close(block(x), expected)


def test_sppf_equals_spp_of_the_growing_windows():
    fast, slow = filled(SPPF(8, 8, 5)), filled(SPP(8, 8, (5, 9, 13)))
    x = torch.randn(2, 8, 16, 16)
    assert_close(fast(x), slow(x))


def test_focus_takes_squares_apart():
    focus = filled(Focus(1, 4))
    seen = {}
    focus.conv.register_forward_hook(lambda _m, inputs, _y: seen.update(x=inputs[0]))
    focus(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert seen["x"][0, :, 0, 0].tolist() == [0, 4, 1, 5]
    assert seen["x"].shape == (1, 4, 2, 2)


def test_detect_lists_raw_outputs_by_level_row_column_and_anchor():
    head = filled(Detect(2, 3, [4, 6]))
    maps = [torch.randn(2, 4, 3, 5), torch.randn(2, 6, 1, 2)]
    raw = head(maps)
    assert raw.shape == (2, (15 + 2) * 2, 8)
    first = head.m[0](maps[0])  # [2, anchors * 8, 3, 5], anchors slowest
    assert_close(raw[1, (2 * 5 + 4) * 2 + 1], first[1, 8:, 2, 4])
    second = head.m[1](maps[1])
    assert_close(raw[0, 15 * 2 + 1 * 2], second[0, :8, 0, 1])
