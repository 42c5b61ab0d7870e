"""AdaQuant (Hubara et al., arXiv 2006.10518): optimize weights, scales and bias of a layer for its output error.

Rounding passes gradients through unchanged, so a weight can move by more than one step of the grid. The error is that
of the layer's outputs after BatchNorm, from the inputs that the quantized layers before it return. Step sizes are those
of the authors' program.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.comparators.inputs import Samples, UnitInputs
from edged.comparators.method import Options, Solution, grid_of
from edged.comparators.units import Unit
from edged.quant.grid import Grid, QuantizedWeight

BATCH = 50
WEIGHT_RATE, RANGE_RATE, BIAS_RATE = 1e-5, 1e-3, 1e-3


class AdaQuant:
    """Optimize each layer on its own; 100 steps on 50 images each in the authors' program."""

    blockwise = False
    iterations = 100

    def quantize(self, unit: Unit, inputs: UnitInputs, options: Options) -> Solution:
        """Optimize the layer's weights, scales and the shift of its outputs."""
        trained = _Trained(unit, grid_of(unit.layer.weight, options))
        targets = inputs.keep("targets", map(unit.normalized, inputs.targets()))
        generator = torch.Generator().manual_seed(options.seed)
        for _ in range(self.iterations if options.iterations is None else options.iterations):
            chosen = torch.randint(len(targets), (min(BATCH, len(targets)),), generator=generator)
            trained.step(inputs.of_quantized, targets, chosen)
        return Solution({unit.name: trained.quantized()}, {unit.name: trained.shift.detach()})


class _Trained:
    """A layer's weights, ranges and output shift while they are optimized."""

    def __init__(self, unit: Unit, grid: Grid) -> None:
        weight = unit.layer.weight.detach()
        self._unit, self._grid, self._shape = unit, grid, tuple(weight.shape)
        self.shift = torch.zeros_like(grid.scale).requires_grad_()
        self._weight = weight.flatten(1).clone().requires_grad_()
        self._range = (grid.scale * grid.max_code).clone().requires_grad_()
        self._optimizer = torch.optim.Adam(
            [
                {"params": [self._weight], "lr": WEIGHT_RATE},
                {"params": [self._range], "lr": RANGE_RATE},
                {"params": [self.shift], "lr": BIAS_RATE},
            ]
        )

    def step(self, inputs: Samples, targets: Samples, chosen: Tensor) -> None:
        """Make a step for the mean squared error on the chosen images, whose gradients are summed part by part."""
        self._optimizer.zero_grad()
        for part in targets.parts(chosen):
            with torch.enable_grad():
                weight = self._rounded().reshape(self._shape)
                y = self._unit.run(inputs.rows(part), {self._unit.name: weight})
                shift = self.shift[:, None, None] if isinstance(self._unit.layer, nn.Conv2d) else self.shift
                loss = functional.mse_loss(self._unit.normalized(y + shift), targets.rows(part))
                loss = loss * (len(part) / len(chosen))
            parameters = [self._weight, self._range, self.shift]
            torch.autograd.backward(loss, inputs=parameters)
        self._optimizer.step()

    def quantized(self) -> QuantizedWeight:
        grid = self._present_grid()
        return grid.quantized(grid.encode(self._weight.detach()), self._shape)

    def _present_grid(self) -> Grid:
        scale = self._range.detach() / self._grid.max_code
        return Grid(scale.clamp_min(torch.finfo(torch.float32).tiny), self._grid.zero_point, self._grid.bits)

    def _rounded(self) -> Tensor:
        """Return the weights [rows, columns] on the present grid, differentiable by weights and ranges."""
        scale, zero_point = (self._range / self._grid.max_code)[:, None], self._grid.zero_point[:, None]
        steps = self._weight / scale + zero_point
        codes = (steps + (steps.round() - steps).detach()).clamp(0, self._grid.max_code)
        return (codes - zero_point) * scale
