from __future__ import annotations

import torch
from torch import Tensor

from edged.comparators.method import Options, grid_of
from edged.comparators.obq import Obq
from edged.quant.grid import Grid
from tests.support.comparators import network, unit_inputs, whole


def literal(w: Tensor, H: Tensor, grid: Grid) -> list[int]:
    """Quantize a row by Eq. 12 and 13 of arXiv 2509.05576, in the greedy order of OBQ."""
    w, inverse, codes, left = w.clone(), torch.linalg.inv(H), [0] * len(w), set(range(len(w)))
    while left:
        rounded = grid.nearest(w[None])[0]
        errors = (rounded - w).square()
        outliers = [j for j in left if errors[j] > grid.scale[0] ** 2 / 4 * (1 + 1e-6)]
        if outliers:
            q = max(outliers, key=lambda j: float(errors[j]))
        else:
            q = min(left, key=lambda j: float(errors[j] / inverse[j, j]))
        codes[q] = int(grid.encode(w[None])[0, q])
        w -= (w[q] - rounded[q]) / inverse[q, q] * inverse[q]  # Eq. 12
        inverse -= torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]  # Eq. 13
        inverse[q, q] = 1.0
        left.remove(q)
    return codes


def test_codes_equal_the_direct_computation_on_the_unfolded_inputs():
    options = Options(bits=3)
    unit, inputs = unit_inputs(network(), "conv1", options)
    found = Obq().quantize(unit, inputs, options).weights["conv1"]
    X = torch.nn.functional.unfold(whole(inputs.of_full).double(), 3, padding=1).transpose(0, 1).flatten(1)
    H = 2 / X.shape[1] * X @ X.T
    H = H + 0.01 * H.diagonal().mean() * torch.eye(len(H))
    grid = grid_of(unit.layer.weight, options)
    W = unit.layer.weight.flatten(1).double()
    for row in range(len(W)):
        one = Grid(grid.scale[row : row + 1].double(), grid.zero_point[row : row + 1].double(), 3)
        assert found.codes[row].tolist() == literal(W[row], H, one)
