from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from edged.errors import CalibrationError
from edged.quant.linalg import damp_until_definite, damped, inverse_diagonal, upper_factor
from tests.edged.quant.conftest import Layer


def test_upper_factor(layer: Layer):
    R = upper_factor(layer.H)
    assert_close(R @ R.T, layer.H)
    assert torch.equal(R, R.triu())


def test_inverse_diagonal(layer: Layer):
    L = torch.linalg.cholesky(layer.H)
    for block_size in (5, 24, 256):
        assert_close(inverse_diagonal(L, block_size), torch.linalg.inv(layer.H).diagonal())


def test_damping_is_relative_to_the_mean_diagonal(layer: Layer):
    added = damped(layer.H, 0.5) - layer.H
    assert_close(added, 0.5 * layer.H.diagonal().mean() * torch.eye(24, dtype=torch.float64))


def test_dead_inputs_get_a_unit_diagonal():
    H = torch.diag(torch.tensor([4.0, 0.0, 2.0]))
    assert_close(damped(H, 0.5), torch.diag(torch.tensor([5.0, 1.0, 3.0])))


def test_damping_grows_until_the_factor_exists():
    eigenvectors = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    values = torch.cat([torch.tensor([-0.05], dtype=torch.float64), torch.ones(11, dtype=torch.float64)])
    H = eigenvectors @ torch.diag(values) @ eigenvectors.T
    result = damp_until_definite(H, 1e-3)
    assert result.retries == 2  # the smallest eigenvalue is -0.05: 1e-3 and 1e-2 are too little, 1e-1 suffices
    assert result.damp_ratio == pytest.approx(0.1)
    assert_close(upper_factor(result.H) @ upper_factor(result.H).T, damped(H, 0.1))


def test_rank_deficient_hessian_is_solved_without_retry():
    X = torch.randn(20, 3)
    assert damp_until_definite(X @ X.T, 0.01).retries == 0


def test_hopeless_hessian_is_an_error():
    with pytest.raises(CalibrationError, match="stays indefinite"):
        damp_until_definite(-torch.eye(4), 0.01)


def test_overflow_is_an_error():
    with pytest.raises(CalibrationError, match="not finite"):
        damp_until_definite(torch.full((3, 3), torch.inf), 0.01)
