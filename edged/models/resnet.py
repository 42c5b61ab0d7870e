"""The ResNets of He et al. (arXiv 1512.03385) for ImageNet (table 1) and for CIFAR (section 4.2).

Tensor names are those of the checkpoints in circulation: torchvision's for ImageNet; for CIFAR `linear` is the head and
`shortcut` is option B. Networks and outputs are the same as torchvision's `resnet18` to `resnet152`; they are written
out here because importing torchvision costs 80 MB, in the worker and in every generation that serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.models.head import head_of, pool_of

WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class Variant:
    """What a ResNet has that its tensors' names and shapes leave open, and its head.

    Attributes:
        pooling: Whether max-pooling follows the first convolution; None for what is usual: after one of 7x7 only.
        stride_in: Convolution of a bottleneck that has the stride: "3x3" (v1.5) or "1x1", the first one (v1).
        head: Layers of the head, see `edged.models.head_description`; empty for one linear layer.
    """

    pooling: bool | None = None
    stride_in: str = "3x3"
    head: tuple[str, ...] = ()


_USUAL = Variant()


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero, half of them on each side. No parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height / 2, width / 2]."""
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
        """Map [batch, in_channels, height, width] to [batch, out_channels, height / stride, width / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet of 6 `blocks` + 2 layers.

    Args:
        blocks: Number of blocks in each of the three stages.
        num_classes: Number of outputs.
        in_channels: Channels of the input image.
        shortcut: "pad" (option A) or "projection" (option B).
        head: Layers of the head; empty for one linear layer.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        shortcut: str = "pad",
        head: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], blocks, shortcut)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], blocks, shortcut)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], blocks, shortcut)
        self.pool = pool_of(head)
        self.linear = head_of(head, WIDTHS[2], num_classes)
        self.correction: nn.Module = nn.Identity()  # or a ClusterAffine

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, shortcut: str) -> nn.Sequential:
        first = CifarBlock(in_channels, out_channels, stride=out_channels // in_channels, shortcut=shortcut)
        rest = [CifarBlock(out_channels, out_channels, stride=1, shortcut=shortcut) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> logits [batch, num_classes]."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.correction(self.linear(torch.flatten(self.pool(x), 1)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first has the stride."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: str = "3x3"
    ) -> None:
        super().__init__()
        del stride_in  # there is no 1x1 convolution
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, width, height / stride, width / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions around a shortcut; it or the first 1x1 one has the stride."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, stride_in: str = "3x3"
    ) -> None:
        super().__init__()
        first, middle = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, middle, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, 4 * width, height / stride, width / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.relu(out)
        return activated


BLOCKS: Mapping[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """A ResNet of four stages.

    Args:
        block: Class of the blocks.
        blocks: Number of blocks in each stage.
        num_classes: Number of outputs.
        in_channels: Channels of the input image.
        stem: "imagenet" (7x7, stride 2, then max-pooling) or "small" (3x3, stride 1, none) for small images.
        variant: Everything else; by default torchvision's.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: Sequence[int],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: str = "imagenet",
        variant: Variant = _USUAL,
    ) -> None:
        super().__init__()
        width = IMAGENET_WIDTHS[0]
        large = stem == "imagenet"
        kernel, stride, padding = (7, 2, 3) if large else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        pooled = large if variant.pooling is None else variant.pooling
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if pooled else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(block, blocks, variant.stride_in)
        self.avgpool = pool_of(variant.head)
        self.fc = head_of(variant.head, IMAGENET_WIDTHS[-1] * block.expansion, num_classes)
        self.correction: nn.Module = nn.Identity()  # or a ClusterAffine

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, height, width] -> logits [batch, num_classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.correction(self.fc(torch.flatten(self.avgpool(x), 1)))
        return logits


def _stages(block: type[BasicBlock | Bottleneck], blocks: Sequence[int], stride_in: str) -> list[nn.Sequential]:
    """Build the four stages; all but the first halve height and width in their first block."""
    in_channels, stages = IMAGENET_WIDTHS[0], []
    for stage, (width, count) in enumerate(zip(IMAGENET_WIDTHS, blocks, strict=True)):
        members: list[nn.Module] = []
        for index in range(count):
            stride = 2 if stage and not index else 1
            out_channels = width * block.expansion
            downsample = None
            if stride != 1 or in_channels != out_channels:
                projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
                downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
            members.append(block(in_channels, width, stride, downsample, stride_in))
            in_channels = out_channels
        stages.append(nn.Sequential(*members))
    return stages
