"""Codes pinned for a fixed seed: a change of any code is a change of the method and must be intended."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from edged.quant.layer import LayerResult, quantize_layer
from edged.spec import Method, Order, QuantSpec, Scheme, Search

# 2**-6 and images and weights that are small whole numbers: everything up to the factorization is exact in float64.
DAMP_RATIO = 2**-6
SPECS = {
    "greedy": QuantSpec(bits=4, search=Search.MINMAX),
    "symmetric": QuantSpec(bits=3, search=Search.MSE, scheme=Scheme.SYMMETRIC, order=Order.HESSIAN),
    "ascending": QuantSpec(bits=3, search=Search.WEIGHTED, order=Order.ERROR, descending=False),
    "searched": QuantSpec(bits=3, search=Search.LOSS, order=Order.MIN_PIVOT),
    "best": QuantSpec(bits=2, search=Search.LOSS, order=Order.BEST, beam=4, descent_passes=2),
    "beam": QuantSpec(bits=4, search=Search.MINMAX, order=Order.NONE, beam=8),
    "obq": QuantSpec(bits=3, search=Search.MSE, method=Method.OBQ),
    "rtn": QuantSpec(bits=4, search=Search.MINMAX, method=Method.RTN),
    "requant": QuantSpec(bits=3, search=Search.GOLDEN, method=Method.REQUANT),
}
DIGESTS = {
    "greedy": "de7033a1b0b4bb2e",
    "symmetric": "315c068e19bde709",
    "ascending": "c7ecc8659afca8f0",
    "searched": "ad2ddc3416a6bec2",
    "best": "be314fec3e987272",
    "beam": "78caf81239ff0d27",
    "obq": "b49f298bd7230a2e",
    "rtn": "e13544da88c492ce",
    "requant": "33ad9411801efa28",
}


def whole_numbers(seed: int, low: int, high: int, *shape: int) -> Tensor:
    """Generate float64 whole numbers by a linear congruential generator, identical on every platform and torch."""
    values, state = [], seed
    for _ in range(torch.Size(shape).numel()):
        state = (1103515245 * state + 12345) % 2**31
        values.append(low + (state >> 16) % (high - low))
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def quantized(spec: QuantSpec, disturbance: float = 0.0) -> LayerResult:
    X, W = whole_numbers(1, -9, 10, 2, 18, 64), whole_numbers(2, -99, 100, 8, 18)
    X[:, 1:] += X[:, :-1]  # neighboring inputs are correlated
    noise = torch.randn(2, 18, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = 2 / 64 * X @ X.mT
    spec = QuantSpec.from_dict(spec.to_dict() | {"damp_ratio": DAMP_RATIO})
    return quantize_layer(W.reshape(8, 2, 3, 3), H + disturbance * (noise + noise.mT), spec)


def digest(result: LayerResult) -> str:
    codes = result.weight.codes.numpy().tobytes()
    return hashlib.sha256(codes + bytes(result.weight.zero_point.tolist())).hexdigest()[:16]


@pytest.mark.parametrize("name", SPECS)
def test_codes_match_the_pinned_ones(name: str):
    assert digest(quantized(SPECS[name])) == DIGESTS[name]


@pytest.mark.parametrize("name", SPECS)
def test_no_pinned_code_depends_on_a_rounding_error(name: str):
    for disturbance in (1e-7, -1e-7):
        assert digest(quantized(SPECS[name], disturbance)) == DIGESTS[name]
