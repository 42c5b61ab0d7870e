"""The ResNets for CIFAR of He et al. (arXiv 1512.03385, section 4.2): 6n + 2 layers, widths 16, 32, 64.

Tensor names are those of the checkpoints in circulation (`linear` for the head, `shortcut` for option B).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero, half of them on each side. No parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> [batch, out_channels, height / 2, width / 2]."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Sequential()
        if in_channels != out_channels and shortcut == "pad":
            self.shortcut = PaddedShortcut(in_channels, out_channels)
        elif in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> [batch, out_channels, height / stride, width / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of 6 `blocks` + 2 layers.

    Args:
        blocks: Blocks per stage; there are three stages.
        num_classes: Outputs.
        in_channels: Channels of the input image.
        shortcut: "pad" (option A) or "projection" (option B).
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_channels: int = 3, shortcut: str = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], blocks, shortcut)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], blocks, shortcut)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], blocks, shortcut)
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, shortcut: str) -> nn.Sequential:
        first = CifarBlock(in_channels, out_channels, stride=out_channels // in_channels, shortcut=shortcut)
        rest = [CifarBlock(out_channels, out_channels, stride=1, shortcut=shortcut) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> logits [batch, num_classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))
        return logits
