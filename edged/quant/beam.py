"""Beam search: the greedy recursion with several partial assignments (paths) per row.

In the LDLQ recursion (see fastobq) the loss of the columns quantized so far, sum_{j done} (Δ R)_j^2 / 2, is exact and
never changes afterwards, so the partial assignments of one row can be compared. Each of the `width` best paths is
extended with the nearest and the second nearest code of column j's target; the best `width` of these 2 * width
children survive. Width 1 is the greedy choice; width 2**d searches this tree exhaustively.

        one path:  [ done: codes | block: (Δ R)_j so far | later columns: sums of earlier blocks ]
        a step:    2 children per path -> best `width` of each row -> paths are reordered inside the block
        a block:   paths are reordered once in all other columns, then Δ_block R[block, later] is one product
"""

from __future__ import annotations

import torch
from torch import Tensor

from edged.quant.fastobq import QuantizedRows
from edged.quant.grid import Grid


def quantize_with_beam(
    W: Tensor, R: Tensor, grid: Grid, order: Tensor, width: int, block_size: int = 64, rows_at_once: int = 256
) -> QuantizedRows:
    """Quantize columns in `order`, keeping the `width` partial assignments with the lowest loss in each row.

    A beam can drop the greedy path, so a row's loss can be higher than the greedy one. Compare the losses where no
    row may get worse.

    Args:
        W: Weights [rows, d]. Not modified.
        R: Upper triangular [d, d] with P H P^T = R R^T, columns in `order`. Not modified.
        grid: Fixed scales, one per row.
        order: Permutation of range(d).
        width: Partial assignments per row, at least 1.
        block_size: Columns per lazy update; changes speed only.
        rows_at_once: Rows processed together; bounds memory at rows_at_once * width * d values.

    Returns:
        Codes [rows, d] and their exact loss [rows] under the damped H.
    """
    parts = [
        _search(W[part], R, Grid(grid.scale[part], grid.zero_point[part], grid.bits), order, width, block_size)
        for part in (slice(start, start + rows_at_once) for start in range(0, len(W), rows_at_once))
    ]
    return QuantizedRows(torch.cat([part.codes for part in parts]), torch.cat([part.loss for part in parts]))


def _search(W: Tensor, R: Tensor, grid: Grid, order: Tensor, width: int, block_size: int) -> QuantizedRows:
    rows, d = W.shape
    targets = W[:, order]
    # Each path is a row, so that selecting paths copies contiguous memory.
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
        state: Sum over earlier blocks of Δ_i R_ij [rows * width, block]. Not modified.
        grid: One scale per row.
        loss: Sum of (Δ R)_j^2 over earlier columns [rows, width], infinite for a path that does not exist yet.

    Returns:
        The block's codes [rows * width, block], the losses after the block [rows, width], and for each path the index
        of its ancestor before the block [rows * width].
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
        # Columns up to j hold codes; later columns hold (Δ R)_j so far.
        state[:, j] = codes.gather(1, chosen).flatten()
        state[:, j + 1 :].addr_(error.gather(1, chosen).flatten(), R[j, j + 1 :])
    return state, loss, ancestors


def _two_nearest(wanted: Tensor, grid: Grid) -> Tensor:
    """Return the two nearest codes of each real value in `wanted`.

    Args:
        wanted: Real values [rows, width].
        grid: One scale per row.

    Returns:
        The nearest codes followed by the second nearest ones [rows, 2 * width], in wanted's dtype.
    """
    steps = wanted / grid.scale[:, None]
    nearest = torch.round(steps).add_(grid.zero_point[:, None]).clamp_(0, grid.max_code)
    side = torch.where(steps >= nearest - grid.zero_point[:, None], 1, -1)
    # At either end of the grid the second nearest code is on the inner side.
    side = torch.where((nearest + side < 0) | (nearest + side > grid.max_code), -side, side)
    return torch.cat([nearest, nearest + side], dim=1)
