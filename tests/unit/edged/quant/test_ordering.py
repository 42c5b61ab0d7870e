from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from edged.quant.linalg import Factor, factorize
from edged.quant.ordering import column_order, column_score
from edged.spec import Order
from tests.support.quant_layers import Layer


def test_sensitivity_sums_equation_11_over_the_rows(layer: Layer):
    inverse = torch.linalg.inv(layer.H)
    expected = torch.zeros(24, dtype=torch.float64)
    for j in range(24):
        for i in range(6):
            w = layer.W[i, j]
            quantized = layer.grid.nearest(layer.W)[i, j]
            expected[j] += (quantized - w) ** 2 / (2 * inverse[j, j])
    assert_close(column_score(layer.W, layer.H, factor_of(layer), layer.grid, Order.SENSITIVITY), expected)


@pytest.mark.parametrize("order", [o for o in Order if o not in (Order.NONE, Order.BEST)])
def test_columns_are_visited_from_the_highest_score(layer: Layer, order: Order):
    score = column_score(layer.W, layer.H, factor_of(layer), layer.grid, order)
    visited = score[column_order(layer.W, layer.H, factor_of(layer), layer.grid, order)]
    assert torch.equal(visited, visited.sort(descending=True).values)


def test_no_order_is_the_stored_order(layer: Layer):
    assert column_order(
        layer.W, layer.H, factorize(layer.H, torch.arange(24)), layer.grid, Order.NONE
    ).tolist() == list(range(24))


def test_equal_scores_keep_their_stored_order(layer: Layer):
    same = torch.ones_like(layer.W)
    assert column_order(same, layer.H, factor_of(layer), layer.grid, Order.WEIGHT).tolist() == list(range(24))


def test_ascending_is_the_reverse_of_descending(layer: Layer):
    down, up = (
        column_order(layer.W, layer.H, factor_of(layer), layer.grid, Order.SENSITIVITY, d) for d in (True, False)
    )
    assert up.tolist() == down.tolist()[::-1]


def test_min_pivot_takes_the_smallest_pivot_from_the_last_column_backwards(layer: Layer):
    schur, free, expected = layer.H.clone(), list(range(24)), []
    while free:
        least = min(free, key=lambda j: float(schur[j, j]))
        expected.append(least)
        free.remove(least)
        schur = schur - torch.outer(schur[:, least], schur[least]) / schur[least, least]
    assert column_order(layer.W, layer.H, factor_of(layer), layer.grid, Order.MIN_PIVOT).tolist() == expected[::-1]


def factor_of(layer: Layer) -> Factor:
    return factorize(layer.H, torch.randperm(24))
