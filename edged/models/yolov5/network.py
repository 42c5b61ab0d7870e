"""The network that a plan describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edged.errors import ArchitectureError
from edged.models.yolov5.blocks import C3, SPP, SPPF, Bottleneck, Concat, Conv, Detect, Focus
from edged.models.yolov5.plan import Plan, Row, Shape

# Blocks that a row repeats as a whole; C3 repeats its bottlenecks instead.
_REPEATED: Mapping[str, Callable[..., nn.Module]] = {
    "Conv": Conv,
    "Bottleneck": Bottleneck,
    "SPP": SPP,
    "SPPF": SPPF,
    "Focus": Focus,
}


class YoloV5(nn.Module):
    """A YOLOv5 detector with raw outputs; see `Detect` for their order and `decode` for their meaning.

    Args:
        plan: Plan of the network.
        in_channels: Channels of the image.

    Attributes:
        model: One module per row, named as in YOLOv5's checkpoints.
        strides: Pixels per cell of each level.

    Raises:
        ArchitectureError: The rows do not fit together.
    """

    def __init__(self, plan: Plan, in_channels: int = 3) -> None:
        super().__init__()
        shapes = plan.shapes(in_channels)
        self.strides = plan.strides(in_channels)
        self._sources = [row.sources for row in plan.rows]
        modules = []
        for index, row in enumerate(plan.rows):
            inputs = [shapes[source] if source >= 0 else Shape(in_channels, 1) for source in row.sources]
            try:
                modules.append(_module(plan, row, inputs))
            except ValueError as error:  # torch raises it for channels that the groups do not divide
                raise ArchitectureError(f"row {index} of the yaml ({row.block}) cannot be built: {error}") from None
        self.model = nn.Sequential(*modules)
        for module in self.modules():
            if isinstance(module, Conv):
                module.act = _activation(plan.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [batch, channels, height, width] to raw outputs [batch, predictions, 5 + classes].

        Height and width are multiples of the largest stride.
        """
        maps: list[Tensor] = []
        for sources, module in zip(self._sources, self.model, strict=True):
            read = [maps[source] if source >= 0 else x for source in sources]
            maps.append(module(read if isinstance(module, Concat | Detect) else read[0]))
        return maps[-1]


def _activation(spelled: str) -> nn.Module:
    """Build the module of an activation that `parse_activation` returned."""
    kind, _, argument = spelled.removeprefix("nn.").removesuffix(")").partition("(")
    if kind == "LeakyReLU":
        return nn.LeakyReLU(float(argument), inplace=True)
    return {"SiLU": nn.SiLU, "ReLU": nn.ReLU, "Hardswish": nn.Hardswish}[kind](inplace=True)


def check_sizes(model: nn.Module, plan: Plan, in_channels: int) -> None:
    """Check that the maps of a network fit together, by running it on the meta device, where nothing is computed.

    Args:
        model: The network of `plan` on the meta device.
        plan: Plan of the network.
        in_channels: Channels of the image.

    Raises:
        ArchitectureError: Two maps that are joined differ in size, or a level's map does not have the size that its
            stride implies.
    """
    strides = plan.strides(in_channels)
    side = 2 * max(strides)
    try:
        outputs = model(torch.empty(1, in_channels, side, side, device="meta"))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ArchitectureError(f"the network of the yaml cannot run: {reason}") from None
    expected = sum((side // stride) ** 2 for stride in strides) * len(plan.anchors[0])
    if outputs.shape[1] != expected or any(side % stride for stride in strides):
        raise ArchitectureError(f"the network of the yaml gives {outputs.shape[1]} predictions for {expected} anchors")


def _module(plan: Plan, row: Row, inputs: list[Shape]) -> nn.Module:
    width, repeats = inputs[0].channels, plan.repeats(row)
    if row.block == "Concat":
        return Concat()
    if row.block == "nn.Upsample":
        return nn.Upsample(None, row.arguments[1], "nearest")  # type: ignore[arg-type]  # a whole number, checked
    if row.block == "Detect":
        return Detect(len(plan.anchors[0]), len(plan.names), [shape.channels for shape in inputs])
    channels = plan.channels(row)
    rest: tuple[Any, ...] = row.arguments[1:]
    if row.block == "C3":
        return C3(width, channels, repeats, *rest)
    make = _REPEATED[row.block]
    if repeats == 1:
        return make(width, channels, *rest)
    return nn.Sequential(*(make(width if i == 0 else channels, channels, *rest) for i in range(repeats)))
