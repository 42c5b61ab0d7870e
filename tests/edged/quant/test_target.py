from __future__ import annotations

import torch
from torch.testing import assert_close

from edged.quant.linalg import damp_until_definite
from edged.quant.target import compensated_weights


def test_full_share_is_the_ridge_solution_around_the_weights():
    torch.manual_seed(0)
    W = torch.randn(5, 12, dtype=torch.float64)
    X = torch.randn(12, 80, dtype=torch.float64)
    X_hat = X + 0.3 * torch.randn(12, 80, dtype=torch.float64)
    H = 2 / 80 * X_hat @ X_hat.T
    damped = damp_until_definite(H, 0.01)
    D = damped.H - H
    found = compensated_weights(W, H, damped, 2 / 80 * (W @ X) @ X_hat.T, share=1.0).requires_grad_()
    # The gradient of |W X - W* X_hat|^2 / n + tr((W* - W) D (W* - W)^T) vanishes at the minimum.
    objective = (W @ X - found @ X_hat).square().sum() * 2 / 80 + (((found - W) @ D) * (found - W)).sum()
    assert_close(torch.autograd.grad(objective, found)[0], torch.zeros_like(W), atol=1e-10, rtol=0)


def test_share_is_the_way_from_the_weights_to_the_solution():
    torch.manual_seed(0)
    W, X = torch.randn(3, 6), torch.randn(6, 40)
    H = X @ X.T
    damped, cross = damp_until_definite(H, 0.01), torch.randn(3, 6)
    full = compensated_weights(W, H, damped, cross, 1.0)
    assert torch.equal(compensated_weights(W, H, damped, cross, 0.0), W)
    assert_close(compensated_weights(W, H, damped, cross, 0.5), (W + full) / 2)


def test_equal_inputs_ask_for_no_change():
    torch.manual_seed(0)
    W, X = torch.randn(3, 6), torch.randn(6, 40)
    H = X @ X.T
    assert_close(compensated_weights(W, H, damp_until_definite(H, 0.01), W @ H, 1.0), W)
