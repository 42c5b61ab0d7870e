from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from edged.quant.layer import quantize_at_widths, quantize_layer
from edged.quant.objective import row_loss
from edged.spec import Method, Order, QuantSpec, Scheme, Search
from tests.support.quant_layers import make_layer

ALL_SETTINGS = [
    QuantSpec(method=method, bits=bits, scheme=scheme, order=order)
    for method in Method
    for bits in (2, 4, 8)
    for scheme in Scheme
    for order in (Order.SENSITIVITY, Order.HESSIAN, Order.NONE)
] + [
    QuantSpec(method=method, search=search, descent_passes=1, order=Order.BEST)
    for search in Search
    for method in Method
]


def hessian_of(groups: int, d: int, n: int = 200) -> torch.Tensor:
    X = torch.randn(groups, d, d) @ torch.randn(groups, d, n)
    return 2 / n * X @ X.mT


@pytest.mark.parametrize("spec", ALL_SETTINGS, ids=str)
def test_reported_loss_is_that_of_the_stored_weight(spec: QuantSpec):
    torch.manual_seed(0)
    weight, H = torch.randn(8, 3, 3, 3), hessian_of(1, 27)
    result = quantize_layer(weight, H, spec)
    D = (result.weight.decode() - weight).flatten(1)
    loss, energy = row_loss(D, H[0]).sum(), row_loss(weight.flatten(1), H[0]).sum()
    assert_close(result.loss, float(loss), rtol=1e-4, atol=1e-6)
    assert_close(result.relative_loss, float(loss / energy), rtol=1e-4, atol=1e-6)
    assert int(result.weight.codes.max()) < 2**spec.bits


def test_each_conv_group_uses_its_own_hessian():
    torch.manual_seed(0)
    weight, H = torch.randn(6, 2, 3, 3), hessian_of(3, 18)
    whole = quantize_layer(weight, H, QuantSpec())
    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = quantize_layer(weight[rows], H[group : group + 1], QuantSpec())
        assert torch.equal(whole.weight.codes[rows], alone.weight.codes)


def test_dead_inputs_are_counted_and_stored_as_zero():
    weight, H = torch.randn(4, 10), hessian_of(1, 10)
    H[:, 3] = 0
    H[:, :, 3] = 0
    result = quantize_layer(weight, H, QuantSpec())
    assert result.dead_inputs == 1
    assert torch.equal(result.weight.decode()[:, 3], torch.zeros(4))


def test_more_damping_is_reported():
    H = hessian_of(1, 10)
    H -= 0.05 * H.diagonal(dim1=1, dim2=2).mean() * torch.eye(10) + torch.linalg.eigvalsh(H).min() * torch.eye(10)
    result = quantize_layer(torch.randn(4, 10), H, QuantSpec(damp_ratio=1e-3))
    assert result.retries == 2
    assert result.damp_ratio == pytest.approx(0.1)


def test_a_constant_or_zero_channel_is_quantized_without_errors():
    weight = torch.stack([torch.zeros(10), torch.full((10,), 0.25), torch.randn(10)])
    stored = quantize_layer(weight, hessian_of(1, 10), QuantSpec()).weight.decode()
    assert torch.equal(stored[0], torch.zeros(10))
    assert_close(stored[1], weight[1], rtol=0.07, atol=0)


@pytest.mark.parametrize("order", list(Order))
def test_a_dead_input_changes_no_other_code(order: Order):
    torch.manual_seed(0)
    layer = make_layer(rows=6, d=24)
    # Diagonals on both sides of 1, the value that a dead input's diagonal takes.
    H = layer.H / layer.H.diagonal().median()
    alive = torch.arange(25) != 3
    with_dead, W = torch.zeros(25, 25, dtype=torch.float64), torch.randn(6, 25, dtype=torch.float64)
    with_dead[alive[:, None] & alive] = H.flatten()
    # Damping is absolute, because the mean diagonal would include the dead input.
    spec = QuantSpec(order=order, damp_ratio=0.0, damp_absolute=0.01)
    expected = quantize_layer(W[:, alive], H[None], spec)
    found = quantize_layer(W, with_dead[None], spec)
    assert torch.equal(found.weight.codes[:, alive], expected.weight.codes)
    assert found.dead_inputs == 1


@pytest.mark.parametrize("method", [Method.FASTOBQ, Method.RTN, Method.REQUANT])
def test_widths_share_a_factor_and_report_the_loss_of_their_codes(method: Method):
    torch.manual_seed(0)
    weight, H = torch.randn(6, 2, 3, 3), hessian_of(3, 18)
    before = H.clone()
    specs = [QuantSpec(method=method, bits=bits) for bits in range(2, 9)]
    results = quantize_at_widths(weight, H, specs)
    assert torch.equal(H, before)
    losses = []
    for spec, result in zip(specs, results, strict=True):
        D = (result.weight.decode() - weight).flatten(1).view(3, 2, 18)
        losses.append(float(((D @ H) * D).sum() / 2))
        assert result.loss == pytest.approx(losses[-1], rel=1e-4, abs=1e-6)
        assert result.weight.bits == spec.bits
    assert losses == sorted(losses, reverse=True)


def test_at_one_width_the_codes_are_those_of_a_solve_in_the_same_order_and_range():
    torch.manual_seed(0)
    weight, H = torch.randn(8, 27), hessian_of(1, 27)
    spec = QuantSpec(bits=3, order=Order.HESSIAN, search=Search.WEIGHTED)
    (alone,) = quantize_at_widths(weight, H, [spec])
    assert torch.equal(alone.weight.codes, quantize_layer(weight, H, spec).weight.codes)
