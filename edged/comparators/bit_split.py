"""Bit-split and stitching (Wang et al., ICML 2020): split each code into bits, optimize one bit of all codes at a time.

A row's loss is quadratic in its codes, 1/2 w_hat H w_hat^T - w_hat c^T + const with H = 2/n X_hat X_hat^T and
c = 2/n y X_hat^T. Bits are optimized from the highest to the lowest, each by one pass of coordinate descent over the
columns with all other bits fixed, and then the scale has a closed form; so no step can increase the loss. The paper
splits symmetric codes into ternary digits. Here the digits are the bits of the grid's unsigned codes, so that every
code of every scheme can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edged.calibration.moments import hessian, moments_for
from edged.comparators.inputs import UnitInputs
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.units import Unit
from edged.quant.grid import Grid


@dataclass(frozen=True)
class SplitRows:
    """The result of bit-split.

    Attributes:
        grid: The grid with optimized scales.
        codes: Codes, uint8 [rows, d].
        losses: Sum of all rows' losses, without the constant, at the start and after each step.
    """

    grid: Grid
    codes: Tensor
    losses: list[float]


class BitSplit:
    """Optimize the codes of each layer bit by bit, at most 10 times over all bits."""

    blockwise = False
    iterations = 10

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Optimize the layer's codes and scales on the moments of its inputs and target outputs."""
        layer = unit.layer
        moments = moments_for(layer)
        bias = 0 if layer.bias is None else layer.bias.detach()
        if isinstance(bias, Tensor) and isinstance(layer, nn.Conv2d):
            bias = bias[:, None, None]
        for x, y in inputs.pairs():
            moments.update(x, [y - bias])
        C, H = moments.cross(0) * (2 / moments.positions), hessian(moments)
        grid = grid_of(layer.weight, options)
        rounds = self.iterations if options.iterations is None else options.iterations
        parts = []
        for W, matrix, cross, part in zip(
            layer.weight.detach().flatten(1).chunk(len(H)), H, C, _grids(grid, len(H)), strict=True
        ):
            parts.append(split_bits(part.encode(W), matrix, cross, part, rounds))
        scale = torch.cat([part.grid.scale for part in parts])
        codes = torch.cat([part.codes for part in parts])
        return Solution({unit.name: replace(grid, scale=scale).quantized(codes, tuple(layer.weight.shape))})


def split_bits(codes: Tensor, H: Tensor, C: Tensor, grid: Grid, rounds: int) -> SplitRows:
    """Optimize codes bit by bit and scales in closed form, until nothing changes or for `rounds` rounds.

    Args:
        codes: Codes to start from, uint8 [rows, d]. Not modified.
        H: Hessian 2/n X_hat X_hat^T [d, d], undamped. Not modified.
        C: Cross moment 2/n Y X_hat^T [rows, d]. Not modified.
        grid: Grid to start from.
        rounds: Most rounds, each over all bits.
    """
    whole, zero_point = codes.to(H.dtype), grid.zero_point[:, None]
    scale = grid.scale
    losses = [_loss(scale[:, None] * (whole - zero_point), H, C)]
    for _ in range(rounds):
        scale = _best_scale(whole - zero_point, H, C, scale)
        losses.append(_loss(scale[:, None] * (whole - zero_point), H, C))
        changed = False
        for bit in reversed(range(grid.bits)):
            changed |= _optimize_bit(whole, bit, H, C, scale, zero_point)
            losses.append(_loss(scale[:, None] * (whole - zero_point), H, C))
        if not changed:
            break
    return SplitRows(replace(grid, scale=scale), whole.to(torch.uint8), losses)


def _optimize_bit(whole: Tensor, bit: int, H: Tensor, C: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Set one bit of all codes [rows, d], in place, column after column; return whether any changed."""
    digit = float(1 << bit)
    gradient = (scale[:, None] * (whole - zero_point)) @ H - C
    changed = torch.zeros((), dtype=torch.bool, device=H.device)
    for j in range(whole.shape[1]):
        is_set = torch.floor(whole[:, j] / digit) % 2
        step = digit * (1 - 2 * is_set)
        change = scale * step
        better = change * gradient[:, j] + change.square() * (H[j, j] / 2) < 0
        step = step * better
        whole[:, j] += step
        gradient.addr_(scale * step, H[j])
        changed |= better.any()
    return bool(changed)


def _best_scale(steps: Tensor, H: Tensor, C: Tensor, present: Tensor) -> Tensor:
    """Return the scale [rows] with the least loss for codes less their zero-points [rows, d], where it is positive."""
    best = (steps * C).sum(1) / ((steps @ H) * steps).sum(1)
    return torch.where(torch.isfinite(best) & (best > torch.finfo(torch.float32).tiny), best, present)


def _loss(decoded: Tensor, H: Tensor, C: Tensor) -> float:
    return float((((decoded @ H) / 2 - C) * decoded).sum())


def _grids(grid: Grid, count: int) -> list[Grid]:
    """Divide a grid into those of `count` conv groups."""
    pairs = zip(grid.scale.chunk(count), grid.zero_point.chunk(count), strict=True)
    return [Grid(scale, zero_point, grid.bits) for scale, zero_point in pairs]
