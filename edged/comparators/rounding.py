"""Learned rounding, which AdaRound and BRECQ share: each weight is rounded up or down, whichever the outputs prefer.

A weight of w / scale steps has a variable v, and h(v) = clip(sigmoid(v) (ZETA - GAMMA) + GAMMA, 0, 1) is the share of a
step by which it is rounded up from below. While a regularizer, sum 1 - |2 h - 1|^beta, becomes sharper (beta falls),
every h ends at 0 or 1 (arXiv 2004.10568, Eq. 22-24).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from edged.comparators.inputs import Samples
from edged.comparators.units import Unit
from edged.quant.grid import Grid, QuantizedWeight

Importance = Callable[[Iterable[int]], Tensor]

ZETA, GAMMA = 1.1, -0.1
BETA_START, BETA_END = 20.0, 2.0
WARM_START = 0.2  # share of the iterations without the regularizer
REGULARIZER = 0.01
BATCH = 32
LEARNING_RATE = 1e-3  # at the iterations of the papers
MAX_LEARNING_RATE = 3e-2


class SoftRounding:
    """The rounding of one layer while it is learned.

    Args:
        weight: Weight [rows, ...]. Not modified.
        grid: Grid of its rows.

    Attributes:
        variable: The variables v [rows, columns] that are learned.
    """

    def __init__(self, weight: Tensor, grid: Grid) -> None:
        steps = weight.detach().flatten(1) / grid.scale[:, None] + grid.zero_point[:, None]
        self._floor, self._grid, self._shape = steps.floor(), grid, tuple(weight.shape)
        share = steps - self._floor
        # h(v) is the share that is cut off: learning starts from the weights of full precision.
        self.variable = torch.logit((share - GAMMA) / (ZETA - GAMMA)).requires_grad_()

    def share(self) -> Tensor:
        """Return h(v) [rows, columns], 0 for down and 1 for up."""
        return (torch.sigmoid(self.variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def weight(self) -> Tensor:
        """Return the weight [rows, ...] with its present shares, differentiable by `variable`."""
        codes = (self._floor + self.share()).clamp(0, self._grid.max_code)
        return ((codes - self._grid.zero_point[:, None]) * self._grid.scale[:, None]).reshape(self._shape)

    def regularizer(self, beta: float) -> Tensor:
        """Return the sum of 1 - |2 h - 1|^beta over all weights."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).sum()

    def quantized(self) -> QuantizedWeight:
        """Return the weight with each share rounded to 0 or 1."""
        up = self.share().detach() >= 0.5
        codes = (self._floor + up).clamp(0, self._grid.max_code)
        return self._grid.quantized(codes.to(torch.uint8), self._shape)


def cosine(progress: float) -> float:
    """Return beta after a share `progress` of the iterations with the regularizer, by AdaRound's schedule."""
    return BETA_END + (BETA_START - BETA_END) * (1 + math.cos(math.pi * progress)) / 2


def linear(progress: float) -> float:
    """Return beta after a share `progress` of the iterations with the regularizer, by BRECQ's schedule."""
    return BETA_START + (BETA_END - BETA_START) * progress


def learning_rate(iterations: int, published: int) -> float:
    """Return Adam's step: with fewer iterations than published, larger steps, so that the shares can reach 0 or 1."""
    return min(max(LEARNING_RATE, LEARNING_RATE * published / max(iterations, 1)), MAX_LEARNING_RATE)


def learn_rounding(
    unit: Unit,
    roundings: Mapping[str, SoftRounding],
    inputs: Samples,
    targets: Samples,
    importance: Importance | None,
    *,
    iterations: int,
    published: int,
    beta: Callable[[float], float],
    seed: int,
) -> None:
    """Learn how to round the layers of a unit, so that it computes `targets` from `inputs`.

    Args:
        unit: The unit in full precision.
        roundings: Rounding of each of its layers by name. Their variables are modified.
        inputs: Inputs through the quantized units before it.
        targets: Outputs after `Unit.activated`, in full precision.
        importance: Returns the weights of squared errors [images, ...]; None for equal ones.
        iterations: Steps, each on BATCH images.
        published: Steps in the method's paper.
        beta: The schedule of the regularizer.
        seed: Seed of the order of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    variables = [rounding.variable for rounding in roundings.values()]
    optimizer = torch.optim.Adam(variables, lr=learning_rate(iterations, published))
    warm = int(WARM_START * iterations)
    for step in range(iterations):
        chosen = torch.randint(len(inputs), (min(BATCH, len(inputs)),), generator=generator)
        optimizer.zero_grad()
        for part in targets.parts(chosen):
            with torch.enable_grad():
                output = unit.activated(unit.run(inputs.rows(part), {k: r.weight() for k, r in roundings.items()}))
                errors = (output - targets.rows(part)).square()
                if importance is not None:
                    errors = errors * importance(part)
                # The sum over channels, and the mean over all chosen images and positions.
                loss = errors.sum() / (errors[0, 0].numel() * len(chosen))
            torch.autograd.backward(loss, inputs=variables)
        if step >= warm:
            sharpness = beta((step - warm) / (iterations - warm))
            with torch.enable_grad():
                sums = [REGULARIZER * rounding.regularizer(sharpness) for rounding in roundings.values()]
            torch.autograd.backward(sums, inputs=variables)
        optimizer.step()
