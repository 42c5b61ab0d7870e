from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from edged.errors import CalibrationError
from edged.quant.linalg import cholesky_in_place, damp_in_place, damped_diagonal, factorize
from tests.support.quant_layers import Layer, damped


def test_upper_factor(layer: Layer):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    R = factorize(layer.H, order).take_upper()
    assert_close(R @ R.T, layer.H[order][:, order])
    assert torch.equal(R, R.triu())


@pytest.mark.parametrize("block_size", [1, 5, 24, 256])
def test_cholesky_in_place(layer: Layer, block_size: int):
    A = layer.H.clone()
    assert cholesky_in_place(A, block_size) == 0
    assert_close(A, torch.linalg.cholesky(layer.H))


def test_cholesky_returns_the_first_pivot_that_is_not_positive(layer: Layer):
    for pivot in (1, 13, 24):
        A = layer.H.clone()
        A[pivot - 1, pivot - 1] = -1
        assert cholesky_in_place(A, block_size=5) == pivot == int(torch.linalg.cholesky_ex(_with(layer, pivot)).info)


def _with(layer: Layer, pivot: int) -> Tensor:
    H = layer.H.clone()
    H[pivot - 1, pivot - 1] = -1
    return H


def test_solve(layer: Layer):
    B = torch.randn(5, 24, dtype=torch.float64)
    assert_close(factorize(layer.H, torch.randperm(24)).solve(B) @ layer.H, B)


def test_inverse_diagonal(layer: Layer):
    for block_size in (5, 24, 256):
        factor = factorize(layer.H, torch.randperm(24))
        assert_close(factor.take_inverse_diagonal(block_size), torch.linalg.inv(layer.H).diagonal())


def test_damping_is_relative_to_the_mean_diagonal():
    diagonal = torch.tensor([4.0, 1.0, 1.0])
    assert_close(damped_diagonal(diagonal, 0.5), torch.tensor([5.0, 2.0, 2.0]))


def test_dead_inputs_get_a_unit_diagonal():
    assert_close(damped_diagonal(torch.tensor([4.0, 0.0, 2.0]), 0.5), torch.tensor([5.0, 1.0, 3.0]))


def test_damping_grows_until_the_factor_exists_and_can_be_undone():
    eigenvectors = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([-0.05], dtype=torch.float64), torch.ones(11, dtype=torch.float64)])
    original = eigenvectors @ torch.diag(values) @ eigenvectors.T
    H = original.clone()
    damping, factor = damp_in_place(H, torch.arange(12), 1e-3)
    assert damping.retries == 2  # the smallest eigenvalue is -0.05: 1e-3 and 1e-2 are too small, 1e-1 suffices
    assert damping.damp_ratio == pytest.approx(0.1)
    R = factor.take_upper()
    assert_close(R @ R.T, damped(original, 0.1))
    damping.undo(H)
    assert torch.equal(H, original)


def test_rank_deficient_hessian_is_solved_without_retry():
    X = torch.randn(20, 3)
    assert damp_in_place(X @ X.T, torch.arange(20), 0.01)[0].retries == 0


def test_indefinite_hessian_raises_an_error_and_is_restored():
    H = -torch.eye(4)
    with pytest.raises(CalibrationError, match="is not positive definite"):
        damp_in_place(H, torch.arange(4), 0.01)
    assert torch.equal(H, -torch.eye(4))


def test_overflow_raises_an_error():
    with pytest.raises(CalibrationError, match="not finite"):
        damp_in_place(torch.full((3, 3), torch.inf), torch.arange(3), 0.01)
