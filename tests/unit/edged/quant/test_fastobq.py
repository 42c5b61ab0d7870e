from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from edged.errors import CalibrationError
from edged.quant.fastobq import quantize_columns
from edged.quant.grid import Grid
from edged.quant.objective import row_loss
from edged.quant.rtn import round_to_nearest
from edged.spec import Scheme
from tests.support.quant_layers import Layer, make_layer


def literal_fastobq(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> Tensor:
    """Apply Eq. 12 and 13 literally: per column, one update and one rank-1 downdate of the inverse."""
    W, inverse = W.clone(), torch.linalg.inv(H)
    codes = torch.zeros(W.shape, dtype=torch.uint8)
    for j in order.tolist():
        codes[:, j] = grid.encode(W[:, j : j + 1])[:, 0]
        error = W[:, j] - grid.decode(codes)[:, j]
        W -= error[:, None] / inverse[j, j] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def resolved_fastobq(W: Tensor, H: Tensor, grid: Grid, order: Tensor) -> Tensor:
    """Re-solve least squares for the remaining columns before each column, without any update formula."""
    codes = torch.zeros(W.shape, dtype=torch.uint8)
    fixed: list[int] = []
    for j in order.tolist():
        free = [k for k in range(W.shape[1]) if k not in fixed]
        current = W.clone()
        if fixed:
            delta = grid.decode(codes)[:, fixed] - W[:, fixed]
            current[:, free] -= torch.linalg.solve(H[free][:, free], H[free][:, fixed] @ delta.T).T
        codes[:, j] = grid.encode(current[:, j : j + 1])[:, 0]
        fixed.append(j)
    return codes


@pytest.mark.parametrize("oracle", [literal_fastobq, resolved_fastobq])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    d=st.integers(1, 20),
    bits=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    scheme=st.sampled_from(Scheme),
)
def test_codes_equal_the_oracle(oracle, rows: int, d: int, bits: int, seed: int, scheme: Scheme):
    layer = make_layer(rows, d, bits, seed, scheme)
    order = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
    codes = quantize_columns(layer.W, layer.H, layer.grid, order, block_size=7).codes
    assert torch.equal(codes, oracle(layer.W, layer.H, layer.grid, order))


def test_loss_is_that_of_the_codes(layer: Layer):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    quantized = quantize_columns(layer.W, layer.H, layer.grid, order)
    D = layer.grid.decode(quantized.codes) - layer.W
    assert_close(quantized.loss, ((D @ layer.H) * D).sum(1) / 2)


@pytest.mark.parametrize("block_size", [1, 2, 5, 23, 24, 128])
def test_every_block_size_gives_the_same_codes(layer: Layer, block_size: int):
    order = torch.arange(23, -1, -1)
    whole = quantize_columns(layer.W, layer.H, layer.grid, order, block_size=24)
    blocked = quantize_columns(layer.W, layer.H, layer.grid, order, block_size)
    assert torch.equal(whole.codes, blocked.codes)
    assert_close(whole.loss, blocked.loss)


def test_identity_hessian_gives_round_to_nearest(layer: Layer):
    identity = torch.eye(24, dtype=torch.float64)
    codes = quantize_columns(layer.W, identity, layer.grid, torch.randperm(24)).codes
    assert torch.equal(codes, round_to_nearest(layer.W, identity, layer.grid).codes)


def test_beats_round_to_nearest(layer: Layer):
    ours = quantize_columns(layer.W, layer.H, layer.grid, torch.arange(24)).loss.sum()
    assert ours < 0.7 * round_to_nearest(layer.W, layer.H, layer.grid).loss.sum()


def test_inputs_are_not_modified(layer: Layer):
    W, H = layer.W.clone(), layer.H.clone()
    quantize_columns(layer.W, layer.H, layer.grid, torch.arange(24))
    assert torch.equal(W, layer.W)
    assert torch.equal(H, layer.H)


def test_indefinite_hessian_raises_an_error(layer: Layer):
    H = layer.H.clone()
    H[5, 5] = -1
    with pytest.raises(CalibrationError, match=r"pivot \d+ of 24 of the Hessian is not positive"):
        quantize_columns(layer.W, H, layer.grid, torch.arange(24))


def test_reported_loss_in_float32_is_close_to_the_float64_loss():
    layer = make_layer(rows=8, d=300, seed=3)
    grid = Grid(layer.grid.scale.float(), layer.grid.zero_point.float(), layer.grid.bits)
    quantized = quantize_columns(layer.W.float(), layer.H.float(), grid, torch.arange(300))
    D = grid.decode(quantized.codes).double() - layer.W
    assert_close(quantized.loss.double(), row_loss(D, layer.H), rtol=1e-3, atol=0)
