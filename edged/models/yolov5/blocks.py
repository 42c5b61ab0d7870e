"""The blocks of YOLOv5, from its published architecture. Tensor names are those of its checkpoints.

All of them can be traced by torch.fx: no control flow depends on values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BN_EPS, BN_MOMENTUM = 1e-3, 0.03


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, SiLU.

    Args:
        c1: Input channels.
        c2: Output channels.
        kernel: Side of the kernel.
        stride: Step of the kernel.
        padding: Zeros around the map; None for half the kernel.
        groups: Number of convolution groups.
    """

    def __init__(
        self, c1: int, c2: int, kernel: int = 1, stride: int = 1, padding: int | None = None, groups: int = 1
    ) -> None:
        super().__init__()
        around = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(c1, c2, kernel, stride, around, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act: nn.Module = nn.SiLU(inplace=True)  # nothing else reads what BatchNorm returns

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c1, height, width] to [batch, c2, height / stride, width / stride]."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution; the input is added where `shortcut` asks for it and the widths allow it."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * expansion)
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(hidden, c2, 3, groups=groups)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c1, height, width] -> [batch, c2, height, width]."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C3(nn.Module):
    """Two 1x1 branches of one input, one of them through `repeats` bottlenecks, joined by a third 1x1 convolution."""

    def __init__(
        self, c1: int, c2: int, repeats: int = 1, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        hidden = int(c2 * expansion)
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(c1, hidden)
        self.cv3 = Conv(2 * hidden, c2)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, groups, 1.0) for _ in range(repeats)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c1, height, width] -> [batch, c2, height, width]."""
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class SPP(nn.Module):
    """Max-pooling over windows of several sizes side by side."""

    def __init__(self, c1: int, c2: int, kernels: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(hidden * (len(kernels) + 1), c2)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c1, height, width] -> [batch, c2, height, width]."""
        x = self.cv1(x)
        y: Tensor = self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return y


class SPPF(nn.Module):
    """`SPP` with kernels k, 2k - 1 and 3k - 2, by pooling three times with k."""

    def __init__(self, c1: int, c2: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(hidden * 4, c2)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, c1, height, width] -> [batch, c2, height, width]."""
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        y: Tensor = self.cv2(torch.cat((x, once, twice, self.m(twice)), 1))
        return y


class Focus(nn.Module):
    """Each square of 2x2 pixels as one pixel with four times the channels, followed by a convolution."""

    def __init__(
        self, c1: int, c2: int, kernel: int = 1, stride: int = 1, padding: int | None = None, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv(4 * c1, c2, kernel, stride, padding, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, c1, height, width] to [batch, c2, height / 2, width / 2]."""
        corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        y: Tensor = self.conv(torch.cat(corners, 1))
        return y


class Concat(nn.Module):
    """Concatenation of maps of one size along their channels."""

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Join maps [batch, c_i, height, width] to [batch, sum of c_i, height, width]."""
        return torch.cat(list(maps), 1)


class Detect(nn.Module):
    """One plain 1x1 convolution per level. Its outputs are raw; edged.models.yolov5.decode interprets them.

    Args:
        anchors: Number of anchors per level.
        num_classes: Number of classes.
        widths: Input channels of each level.
    """

    def __init__(self, anchors: int, num_classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layout = (anchors, 5 + num_classes)
        self.m = nn.ModuleList(nn.Conv2d(width, anchors * (5 + num_classes), 1) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[batch, c_i, h_i, w_i] each -> raw outputs [batch, sum of h_i w_i anchors, 5 + classes].

        In the order of levels, then rows, columns and anchors: x, y, width, height, objectness and a value per class.
        """
        levels = [conv(x).permute(0, 2, 3, 1).flatten(1, 2) for conv, x in zip(self.m, maps, strict=True)]
        return torch.cat([level.unflatten(2, self.layout).flatten(1, 2) for level in levels], 1)
