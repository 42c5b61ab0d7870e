"""Quantization of one layer: from weights and Hessian to codes, losses and diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edged.matmul import matmul_nt
from edged.quant.accept import better_rows
from edged.quant.beam import quantize_with_beam
from edged.quant.coordinate_descent import descend
from edged.quant.error_propagation import compensated_weights
from edged.quant.fastobq import QuantizedRows, quantize_with_factor
from edged.quant.grid import Grid, QuantizedWeight, minmax_grid
from edged.quant.linalg import FACTOR_ROWS, Damping, Factor, damp_in_place, factorize
from edged.quant.objective import row_loss
from edged.quant.obq import ROWS_AT_ONCE as OBQ_ROWS
from edged.quant.obq import quantize_rows_greedily
from edged.quant.ordering import KNOWN_BEFOREHAND, column_order, order_beforehand
from edged.quant.power_grid import joined
from edged.quant.requant import estimated_grid
from edged.quant.rtn import round_to_nearest
from edged.quant.scale_search import REFINE, quantize_with_golden_section, quantize_with_search, weighted_grid
from edged.spec import Levels, Method, Order, QuantSpec, Search

# The orders that Order.BEST tries.
NEAREST = (Method.RTN, Method.REQUANT)  # methods that round each weight on its own
BEST_OF = (Order.SENSITIVITY, Order.MIN_PIVOT, Order.HESSIAN)


@dataclass(frozen=True)
class LayerResult:
    """A quantized layer and its diagnostics.

    Attributes:
        weight: Codes, scales and zero-points of all conv groups.
        loss: Loss tr(Δ H Δ^T) / 2 in squared output units, with the undamped H and Δ relative to the target weights
            (the compensated weights where errors are propagated).
        relative_loss: Loss as a share of the target output's energy tr(W H W^T) / 2.
        damp_ratio: Largest damping ratio that any conv group needed.
        retries: Number of tenfold increases of the damping, over all conv groups.
        order: Column order in use; that of the first conv group where groups differ.
        dead_inputs: Number of inputs that were zero in every calibration image.
        target_power: Mean square of each target output [rows], diag(W H W^T) / 2.
        power: Mean square of each output of the quantized weights [rows].
    """

    weight: QuantizedWeight
    loss: float
    relative_loss: float
    damp_ratio: float
    retries: int
    order: Order
    dead_inputs: int
    target_power: Tensor
    power: Tensor


def solve_bytes(weight: Tensor, groups: int, spec: QuantSpec) -> int:
    """Estimate the memory that `quantize_layer` takes in bytes, including its Hessians.

    Args:
        weight: Weight [rows, ...] of the layer; only its shape is read.
        groups: Number of conv groups.
        spec: Method, search and beam width that determine the scratch memory.
    """
    rows, d = weight.shape[0] // groups, weight[0].numel()
    if spec.method is Method.OBQ:
        return 4 * ((groups + 2) * d**2 + OBQ_ROWS * d**2)
    # The Hessian, a permuted copy, and the scratch memory of factorizing that copy in place.
    candidates = len(REFINE) if spec.search is Search.LOSS and spec.method not in NEAREST else 1
    one_share = spec.method is Method.REQUANT and spec.search is Search.GOLDEN  # of all rows, which are kept together
    at_once = rows if one_share else min(rows, spec.rows_at_once)
    # Each candidate holds its errors in float32 and its codes twice; some matrices have the weight's own shape.
    levels = 10 if spec.levels is Levels.POWER else 6  # numbers of a level by row and column, some of them of 8 bytes
    searched = at_once * d * max(levels * candidates, 8 * spec.beam if spec.beam > 1 else 0)
    return 4 * (groups + 1) * d**2 + max(2 * 4 * FACTOR_ROWS * d, searched) + 4 * 4 * rows * d


def quantize_layer(weight: Tensor, H: Tensor, spec: QuantSpec, cross: Tensor | None = None) -> LayerResult:
    """Quantize the weight of a convolution or a linear layer.

    Args:
        weight: Weight [rows, ...] of any shape. Not modified.
        H: Undamped Hessian 2/n X X^T [conv_groups, d, d]; rows are divided among the groups in order. Its diagonal is
            damped during the call and restored.
        spec: Method, bits, grid and damping.
        cross: Cross moment 2/n Y X^T [conv_groups, rows / conv_groups, d] with the outputs Y that the layer should
            compute; None for Y = W X.

    Returns:
        The quantized weight with its losses and diagnostics.

    Raises:
        CalibrationError: A Hessian is not finite or cannot be made positive definite.
    """
    rows = weight.detach().flatten(1).to(H.dtype).chunk(H.shape[0])
    crosses = [None] * H.shape[0] if cross is None else list(cross)
    groups = [_quantize_group(W, matrix, spec, part) for W, matrix, part in zip(rows, H, crosses, strict=True)]
    return _joined(groups, weight)


def quantize_at_widths(weight: Tensor, H: Tensor, specs: Sequence[QuantSpec]) -> list[LayerResult]:
    """Quantize a weight once for each spec, all with one factorization: for comparing widths, not for serving.

    Columns are visited by descending diag H, which is the same order at every width, and ranges are not refined by the
    true loss. Losses are somewhat higher than those of `quantize_layer`, in about the same relation to each other.

    Args:
        weight: Weight [rows, ...] of any shape. Not modified.
        H: Undamped Hessian 2/n X X^T [conv_groups, d, d]. Its diagonal is damped during the call and restored.
        specs: Settings that differ in bits and scheme only.

    Returns:
        A result for each spec.

    Raises:
        CalibrationError: A Hessian is not finite or cannot be made positive definite.
    """
    rows = weight.detach().flatten(1).to(H.dtype).chunk(H.shape[0])
    groups = [_quantize_group_at_widths(W, matrix, specs) for W, matrix in zip(rows, H, strict=True)]
    return [_joined([group[i] for group in groups], weight) for i in range(len(specs))]


def _joined(groups: Sequence[_Group], weight: Tensor) -> LayerResult:
    """Return the result of a layer from those of its conv groups."""
    target_power = torch.cat([group.target_power for group in groups])
    loss, energy = sum(group.loss for group in groups), float(target_power.sum())
    grid = joined([group.grid for group in groups])
    return LayerResult(
        weight=grid.quantized(torch.cat([group.codes for group in groups]), tuple(weight.shape)),
        loss=loss,
        relative_loss=loss / energy if energy > 0 else 0.0,
        damp_ratio=max(group.damp_ratio for group in groups),
        retries=sum(group.retries for group in groups),
        order=groups[0].order,
        dead_inputs=sum(group.dead_inputs for group in groups),
        target_power=target_power,
        power=torch.cat([group.power for group in groups]),
    )


@dataclass(frozen=True)
class _Group:
    grid: Grid
    codes: Tensor
    order: Order
    loss: float
    damp_ratio: float
    retries: int
    dead_inputs: int
    target_power: Tensor
    power: Tensor


def _quantize_group(W: Tensor, H: Tensor, spec: QuantSpec, cross: Tensor | None) -> _Group:
    known = spec.method is Method.FASTOBQ and spec.order in KNOWN_BEFOREHAND
    first = order_beforehand(H, spec.order, spec.descending)
    damping, factor = damp_in_place(H, first, spec.damp_ratio, spec.damp_absolute)
    try:
        if cross is not None:
            W = compensated_weights(W, H, factor, H.diagonal() - damping.diagonal, cross, spec.propagation)
        # A dead input contributes nothing to the output, so its weights are stored as zero.
        live = W.masked_fill(damping.dead, 0)
        grid = _first_grid(live, H, spec)
        # Damping may change the order by diag H; the order of the factor is the one that counts.
        orders = {spec.order: first} if known else _orders(live, H, factor, grid, spec)
        R = factor.take_upper() if known else None
        del factor  # d x d, and no longer needed
        grid, quantized, order = _quantize_rows(live, H, R, grid, orders, spec)
    finally:
        damping.undo(H)
    return _measured(W, H, grid, quantized, order, damping)


def _quantize_group_at_widths(W: Tensor, H: Tensor, specs: Sequence[QuantSpec]) -> list[_Group]:
    columns = order_beforehand(H, Order.HESSIAN)
    damping, factor = damp_in_place(H, columns, specs[0].damp_ratio, specs[0].damp_absolute)
    try:
        live = W.masked_fill(damping.dead, 0)
        R = factor.take_upper()
        del factor
        found = []
        for spec in specs:
            grid = _first_grid(live, H, spec)
            nearest = spec.method in NEAREST
            found.append((grid, round_to_nearest(live, H, grid) if nearest else _solved(live, R, grid, columns, spec)))
    finally:
        damping.undo(H)
    return [_measured(W, H, grid, quantized, Order.HESSIAN, damping) for grid, quantized in found]


def _solved(W: Tensor, R: Tensor, grid: Grid, columns: Tensor, spec: QuantSpec) -> QuantizedRows:
    return quantize_with_factor(W, R, grid, columns, spec.block_size)


def _measured(W: Tensor, H: Tensor, grid: Grid, quantized: QuantizedRows, order: Order, damping: Damping) -> _Group:
    """Return codes with their loss under the undamped H."""
    # Scales are served as float32, so the reported loss is that of the decoded weights.
    delta = grid.quantized(quantized.codes, tuple(W.shape)).decode().to(W.dtype) - W
    product, loss = matmul_nt(W, H), row_loss(delta, H)
    target_power = (product * W).sum(1) / 2
    return _Group(
        grid=grid,
        codes=quantized.codes,
        order=order,
        loss=float(loss.sum()),
        damp_ratio=damping.damp_ratio,
        retries=damping.retries,
        dead_inputs=int(damping.dead.sum()),
        target_power=target_power,
        # (W + Δ) H (W + Δ)^T / 2, expanded: two of its three terms are already computed.
        power=target_power + (product * delta).sum(1) + loss,
    )


def _orders(W: Tensor, H: Tensor, factor: Factor, grid: Grid, spec: QuantSpec) -> dict[Order, Tensor]:
    """Return the column orders to try, by rule; empty where columns are not compensated in a shared order."""
    if spec.method is Method.OBQ and spec.search in (Search.LOSS, Search.GOLDEN):
        # OBQ orders each row separately; the grid search uses one shared order.
        return {Order.SENSITIVITY: column_order(W, H, factor, grid, Order.SENSITIVITY)}
    if spec.method is not Method.FASTOBQ:
        return {}
    rules = BEST_OF if spec.order is Order.BEST else (spec.order,)
    return {rule: column_order(W, H, factor, grid, rule, spec.descending) for rule in rules}


def _quantize_rows(
    W: Tensor, H: Tensor, R: Tensor | None, grid: Grid, orders: dict[Order, Tensor], spec: QuantSpec
) -> tuple[Grid, QuantizedRows, Order]:
    """Choose grid, codes and order for W [rows, d] under the damped H [d, d].

    R is the upper factor [d, d] in the only order of `orders` if that was known beforehand, else None.
    """
    if spec.method in NEAREST:
        return grid, round_to_nearest(W, H, grid), Order.NONE
    if spec.method is Method.OBQ:
        for columns in orders.values():
            grid, _ = _search_grid(W, factorize(H, columns).take_upper(), grid, columns, spec)
        return grid, quantize_rows_greedily(W, H, grid), Order.NONE
    tried = []
    for rule, columns in orders.items():
        factor = factorize(H, columns).take_upper() if R is None else R
        tried.append((*_search_grid(W, factor, grid, columns, spec), columns, rule))
        del factor
    grid, rows, columns, rule = min(tried, key=lambda entry: float(entry[1].loss.sum()))
    # Beam search and coordinate descent cost more than a solve, so only the best order gets them.
    return grid, _improved(W, H, grid, rows, columns, spec), rule


def _first_grid(W: Tensor, H: Tensor, spec: QuantSpec) -> Grid:
    if spec.method is Method.REQUANT:
        return estimated_grid(W, H, spec)
    if spec.search is Search.MINMAX:
        return minmax_grid(W, spec.width, spec.scheme)
    # Round-to-nearest does not compensate errors, so its grid minimizes the plain rounding error.
    plain = spec.search is Search.MSE or spec.method is Method.RTN
    weight = torch.ones_like(H.diagonal()) if plain else H.diagonal()
    return weighted_grid(W, weight, spec.width, spec.scheme)


def _improved(W: Tensor, H: Tensor, grid: Grid, rows: QuantizedRows, columns: Tensor, spec: QuantSpec) -> QuantizedRows:
    """Improve the codes on the same grid by beam search and coordinate descent; no row's loss rises."""
    if spec.beam > 1:
        R = factorize(H, columns).take_upper()
        # Beam search keeps its own, smaller block size, because paths are reordered within each block.
        wide = quantize_with_beam(W, R, grid, columns, spec.beam, rows_at_once=spec.rows_at_once)
        rows = better_rows(rows, wide)
    if spec.descent_passes:
        rows = descend(W, H, grid, rows, spec.descent_passes)
    return rows


def _search_grid(W: Tensor, R: Tensor, grid: Grid, columns: Tensor, spec: QuantSpec) -> tuple[Grid, QuantizedRows]:
    """Search a grid by `spec.search`, starting from `grid`, and quantize on it; the total loss never rises."""
    if spec.search is Search.LOSS:
        return quantize_with_search(W, R, grid, columns, spec.block_size, spec.rows_at_once)
    start = grid, quantize_with_factor(W, R, grid, columns, spec.block_size)
    if spec.search is not Search.GOLDEN:
        return start
    # One clip factor for all rows may be worse than the per-row factors of the initial grid.
    clipped = quantize_with_golden_section(W, R, spec.width, spec.scheme, columns, spec.block_size)
    return min(start, clipped, key=lambda entry: float(entry[1].loss.sum()))
