"""Layer loss on held-out images, for the inputs of the full-precision network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.calibration.moments import Moments, hessian, moments_for
from edged.models.layers import quantizable_layers
from edged.quant.objective import row_loss


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss of all layers, each tr(Δ H Δ^T) / tr(W H W^T) with Δ = decoded - W.

    Attributes:
        layers: Relative loss by layer name.
        geometric_mean: Geometric mean over layers: every layer has the same weight.
        sum_ratio: Sum of losses over sum of energies: layers with large outputs have more weight.
    """

    layers: dict[str, float]
    geometric_mean: float
    sum_ratio: float


def layer_moments(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Moments]:
    """Return the moments of every layer's full-precision inputs by layer name, from one pass.

    Args:
        model: Full precision, eval mode.
        batches: Network inputs [b, C, H, W].
    """
    layers = quantizable_layers(model)
    sums = {name: moments_for(layer) for name, layer in layers.items()}
    with ExitStack() as stack, torch.inference_mode():
        for name, layer in layers.items():
            # A hook gets the layer's actual input, whatever precedes the layer.
            hook = layer.register_forward_pre_hook(lambda _, inputs, name=name: sums[name].update(inputs[0]))
            stack.callback(hook.remove)
        for batch in batches:
            model(batch.to(memory_format=torch.channels_last))
    return sums


def held_out_loss(
    model: nn.Module, decoded: Mapping[str, Tensor], cache: ImageCache, batch_size: int = 32
) -> HeldOutLoss:
    """Return the loss of decoded weights under H of the held-out images.

    Args:
        model: Full precision.
        decoded: Quantized weights by layer name, each of its layer's shape.
        cache: Images; the held-out images are used.
        batch_size: Images per step.
    """
    moments = layer_moments(model, cache.batches(cache.held_out, batch_size))
    return summarize(
        {
            name: layer_loss(layer.weight.detach(), decoded[name], hessian(moments.pop(name)))
            for name, layer in quantizable_layers(model).items()
        }
    )


def layer_loss(weight: Tensor, decoded: Tensor, H: Tensor) -> tuple[float, float]:
    """Return tr(Δ H Δ^T) / 2 and tr(W H W^T) / 2 for weights [rows, ...] and H [conv_groups, d, d]."""
    groups = zip(decoded.flatten(1).chunk(len(H)), weight.flatten(1).chunk(len(H)), H, strict=True)
    parts = [(float(row_loss(q - W, matrix).sum()), float(row_loss(W, matrix).sum())) for q, W, matrix in groups]
    return sum(loss for loss, _ in parts), sum(energy for _, energy in parts)


def summarize(losses: Mapping[str, tuple[float, float]]) -> HeldOutLoss:
    """Return the means over layers of (loss, energy) pairs."""
    relative = {name: loss / energy for name, (loss, energy) in losses.items()}
    logs = [math.log(max(value, 1e-30)) for value in relative.values()]
    return HeldOutLoss(
        layers=relative,
        geometric_mean=math.exp(sum(logs) / len(logs)),
        sum_ratio=sum(loss for loss, _ in losses.values()) / sum(energy for _, energy in losses.values()),
    )
