from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from edged.quant.error_propagation import compensated_weights
from edged.quant.linalg import damp_in_place


def test_full_share_is_the_ridge_solution_around_the_weights():
    torch.manual_seed(0)
    W = torch.randn(5, 12, dtype=torch.float64)
    X = torch.randn(12, 80, dtype=torch.float64)
    X_hat = X + 0.3 * torch.randn(12, 80, dtype=torch.float64)
    H = 2 / 80 * X_hat @ X_hat.T
    damping, factor = damp_in_place(H, torch.randperm(len(H)), 0.01)
    added = H.diagonal() - damping.diagonal
    D = torch.diag(added)
    found = compensated_weights(W, H, factor, added, 2 / 80 * (W @ X) @ X_hat.T, share=1.0).requires_grad_()
    # The gradient of |W X - W* X_hat|^2 / n + tr((W* - W) D (W* - W)^T) vanishes at the minimum.
    objective = (W @ X - found @ X_hat).square().sum() * 2 / 80 + (((found - W) @ D) * (found - W)).sum()
    assert_close(torch.autograd.grad(objective, found)[0], torch.zeros_like(W), atol=1e-10, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [4, 60])  # fewer and more images than inputs
def test_no_rows_output_error_increases(n: int, share: float):
    torch.manual_seed(0)
    W, X = torch.randn(5, 12, dtype=torch.float64), torch.randn(12, n, dtype=torch.float64)
    X_hat = X + 0.3 * torch.randn(12, n, dtype=torch.float64)
    H = 2 / n * X_hat @ X_hat.T
    damping, factor = damp_in_place(H, torch.randperm(len(H)), 0.01)
    added = H.diagonal() - damping.diagonal
    found = compensated_weights(W, H, factor, added, 2 / n * (W @ X) @ X_hat.T, share)
    assert bool(((W @ X - found @ X_hat).square().sum(1) < (W @ X - W @ X_hat).square().sum(1)).all())


def test_share_interpolates_between_the_weights_and_the_solution():
    torch.manual_seed(0)
    W, X = torch.randn(3, 6), torch.randn(6, 40)
    H, cross = X @ X.T, torch.randn(3, 6)
    damping, factor = damp_in_place(H, torch.randperm(len(H)), 0.01)
    found = [compensated_weights(W, H, factor, H.diagonal() - damping.diagonal, cross, s) for s in (0.0, 0.5, 1.0)]
    assert torch.equal(found[0], W)
    assert_close(found[1], (W + found[2]) / 2)


def test_equal_inputs_leave_the_weights_unchanged():
    torch.manual_seed(0)
    W, X = torch.randn(3, 6), torch.randn(6, 40)
    H = X @ X.T
    cross = W @ H
    damping, factor = damp_in_place(H, torch.randperm(len(H)), 0.01)
    assert_close(compensated_weights(W, H, factor, H.diagonal() - damping.diagonal, cross, 1.0), W)
