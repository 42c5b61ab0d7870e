"""Beam search: the greedy recursion, but with several partial assignments alive in each row.

In the LDLQ recursion (see fastobq) the loss of the columns done so far is exact and never changes afterwards,
sum_{j done} (Δ R)_j^2 / 2, so that partial assignments of one row can be compared. Each of the `width` best is
continued by the nearest code of what column j wants and by the next nearest one; of these 2 * width the best `width`
stay. Width 1 is the greedy choice; 2**d is an exhaustive search of this tree.

        one path:  [ done: codes | block: (Δ R)_j so far | later columns: sums of earlier blocks ]
        a step:    2 children a path -> best `width` of a row -> paths change places inside the block
        a block:   paths change places once in the rest, then Δ_block R[block, later] is one product
"""

from __future__ import annotations

import torch
from torch import Tensor

from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid


def quantize_with_beam(
    W: Tensor, R: Tensor, grid: Grid, order: Tensor, width: int, block_size: int = 64, rows_at_once: int = 256
) -> QuantizedRows:
    """Quantize columns in `order`, keeping the `width` partial assignments of least loss in each row.

    A beam can lose the greedy path: compare losses where no row may get worse.

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper triangular [d, d] with P H P^T = R R^T, columns in `order`. Not modified.
        grid: Fixed scales, one per row.
        order: Permutation of range(d).
        width: Partial assignments a row, at least 1.
        block_size: Columns per lazy update; changes speed only.
        rows_at_once: Rows that are worked on together; bounds memory at rows_at_once * width * d values.

    Returns:
        Codes [rows, d] and the exact loss [rows], with the damped H.
    """
    parts = [
        _search(W[part], R, Grid(grid.scale[part], grid.zero_point[part], grid.bits), order, width, block_size)
        for part in (slice(start, start + rows_at_once) for start in range(0, len(W), rows_at_once))
    ]
    return QuantizedRows(torch.cat([part.codes for part in parts]), torch.cat([part.loss for part in parts]))


def _search(W: Tensor, R: Tensor, grid: Grid, order: Tensor, width: int, block_size: int) -> QuantizedRows:
    rows, d = W.shape
    targets = W[:, order]
    # Paths as rows: taking paths over copies contiguous runs.
    state = W.new_zeros(rows * width, d)
    loss = W.new_full((rows, width), torch.inf)
    loss[:, 0] = 0
    for start in range(0, d, block_size):
        block, later = slice(start, min(start + block_size, d)), slice(start + block_size, d)
        inside, loss, ancestors = _search_block(targets[:, block], R[block, block], state[:, block], grid, loss)
        state = state[ancestors]
        state[:, block] = inside
        values = (inside.view(rows, width, -1) - grid.zero_point[:, None, None]) * grid.scale[:, None, None]
        delta = targets[:, None, block] - values
        state[:, later].addmm_(delta.flatten(0, 1), R[block, later])
    best = loss.argmin(1, keepdim=True)
    codes = torch.empty(rows, d, dtype=torch.uint8, device=W.device)
    codes[:, order] = state.view(rows, width, d)[torch.arange(rows, device=W.device), best[:, 0]].to(torch.uint8)
    return QuantizedRows(codes, loss.gather(1, best)[:, 0] / 2)


def _search_block(targets: Tensor, R: Tensor, state: Tensor, grid: Grid, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advance all paths through one block of columns.

    Args:
        targets: Weights of the block [rows, block].
        R: Diagonal block of the factor [block, block].
        state: sum over earlier blocks of Δ_i R_ij [rows * width, block]. Not modified.
        grid: One scale per row.
        loss: sum of (Δ R)_j^2 over earlier columns [rows, width], infinite for a path that does not exist yet.

    Returns:
        The block's codes [rows * width, block], the losses after it [rows, width], and for each path the index of the
        path [rows * width] that it was before the block.
    """
    rows, width = loss.shape
    first = torch.arange(0, rows * width, width, device=loss.device)[:, None]
    ancestors = torch.arange(rows * width, device=loss.device)
    for j, pivot in enumerate(R.diagonal().tolist()):
        target, carried = targets[:, j, None], state[:, j].view(rows, width)
        codes = _two_nearest(torch.add(target, carried, alpha=1 / pivot), grid)
        error = target - (codes - grid.zero_point[:, None]) * grid.scale[:, None]
        cost = torch.add(carried.repeat(1, 2), error, alpha=pivot).square_() + loss.repeat(1, 2)
        loss, chosen = cost.topk(width, largest=False)
        parents = (first + chosen % width).flatten()
        state, ancestors = state[parents], ancestors[parents]
        # What is done holds codes, what is to come (Δ R)_j so far.
        state[:, j] = codes.gather(1, chosen).flatten()
        state[:, j + 1 :].addr_(error.gather(1, chosen).flatten(), R[j, j + 1 :])
    return state, loss, ancestors


def _two_nearest(wanted: Tensor, grid: Grid) -> Tensor:
    """Nearest codes of real values [rows, width], then the next nearest [rows, 2 * width], in wanted's dtype."""
    steps = wanted / grid.scale[:, None]
    nearest = torch.round(steps).add_(grid.zero_point[:, None]).clamp_(0, grid.max_code)
    side = torch.where(steps >= nearest - grid.zero_point[:, None], 1, -1)
    # Beyond the ends of the grid the next nearest code lies on the inner side.
    side = torch.where((nearest + side < 0) | (nearest + side > grid.max_code), -side, side)
    return torch.cat([nearest, nearest + side], dim=1)
