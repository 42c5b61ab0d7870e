import pytest
import torch
from torch import nn

from edged.models.resnet import CifarBlock, CifarResNet, PaddedShortcut


# Table 6 of arXiv 1512.03385, in millions.
@pytest.mark.parametrize(("blocks", "millions"), [(3, 0.27), (5, 0.46), (7, 0.66), (9, 0.85), (18, 1.7)])
def test_parameter_counts_are_the_papers(blocks, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in CifarResNet(blocks).parameters())
    assert round(count / 1e6, 1 if millions == 1.7 else 2) == millions


def test_padded_shortcut_takes_every_second_pixel_and_pads_channels_evenly():
    x = torch.randn(2, 16, 8, 8)
    y = PaddedShortcut(16, 32)(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, 0::2, 0::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_block_adds_its_input():
    block = CifarBlock(16, 16, 1, "pad").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_map_sizes_halve_twice(shortcut):
    model = CifarResNet(3, 7, 1, shortcut).eval()
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
