"""Small layers to quantize, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from edged.quant.grid import Grid, minmax_grid
from edged.quant.linalg import damped_diagonal
from edged.spec import Scheme


@dataclass(frozen=True)
class Layer:
    """A small layer in float64: weights [rows, d], damped Hessian [d, d], grid."""

    W: Tensor
    H: Tensor
    grid: Grid


def make_layer(rows: int, d: int, bits: int = 4, seed: int = 0, scheme: Scheme = Scheme.ASYMMETRIC) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    X = mixing @ torch.randn(d, 4 * d, generator=generator, dtype=torch.float64)
    W = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return Layer(W, damped(2 * X @ X.T / X.shape[1], 0.01), minmax_grid(W, bits, scheme))


LAYERS = st.builds(
    make_layer,
    rows=st.integers(1, 5),
    d=st.integers(1, 20),
    bits=st.integers(2, 8),
    seed=st.integers(0, 10_000),
    scheme=st.sampled_from(Scheme),
)


def damped(H: Tensor, damp_ratio: float) -> Tensor:
    """Return a damped copy of H."""
    H = H.clone()
    H.diagonal().copy_(damped_diagonal(H.diagonal().clone(), damp_ratio))
    return H
