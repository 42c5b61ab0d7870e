from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from edged.comparators.bit_split import BitSplit, split_bits
from edged.comparators.method import Options
from edged.comparators.nearest import nearest
from edged.spec import Scheme
from tests.support.comparators import decoded, network, unit_inputs, whole
from tests.support.quant_layers import make_layer


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    d=st.integers(1, 14),
    bits=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    scheme=st.sampled_from(Scheme),
)
def test_no_step_increases_the_loss(rows: int, d: int, bits: int, seed: int, scheme: Scheme):
    layer = make_layer(rows, d, bits, seed, scheme)
    C = layer.W @ layer.H
    found = split_bits(layer.grid.encode(layer.W), layer.H, C, layer.grid, rounds=5)
    tolerance = 1e-9 * float((C * layer.W).sum())
    assert all(after <= before + tolerance for before, after in zip(found.losses, found.losses[1:], strict=False))
    delta = found.grid.decode(found.codes) - layer.W
    # The losses lack the constant tr(W H W^T) / 2.
    assert_close(found.losses[-1] + float((C * layer.W).sum()) / 2, float(((delta @ layer.H) * delta).sum()) / 2)


def test_it_ends_where_no_single_bit_can_be_changed_for_the_better():
    layer = make_layer(rows=3, d=8, bits=3)
    C = layer.W @ layer.H
    found = split_bits(layer.grid.encode(layer.W), layer.H, C, layer.grid, rounds=100)
    for row in range(3):
        for j in range(8):
            for bit in range(3):
                codes = found.codes.clone()
                codes[row, j] ^= 1 << bit
                w_hat = found.grid.decode(codes)
                assert float(((w_hat @ layer.H / 2 - C) * w_hat).sum()) >= found.losses[-1] - 1e-9


@pytest.mark.parametrize("name", ["layer2.0.conv1", "linear"])
def test_the_output_error_of_a_layer_falls(name: str):
    options = Options(bits=2)
    unit, inputs = unit_inputs(network(), name, options)
    x, y = whole(inputs.of_quantized), whole(inputs.targets())

    def error(weights: dict[str, torch.Tensor]) -> float:
        return float((unit.run(x, weights) - y).square().mean())

    found = BitSplit().quantize(unit, inputs, options)
    assert error(decoded(found.weights)) < 0.8 * error(decoded(nearest(unit, options).weights))
