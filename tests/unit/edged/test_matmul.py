from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from edged.matmul import matmul_nt, may_have_integer_kernels, shifted_products


@pytest.mark.parametrize(("m", "n", "k"), [(3, 4, 5), (256, 300, 400), (1, 4096, 4096)])
@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_in_every_layout(m: int, n: int, k: int, layout: str, dtype: torch.dtype):
    torch.manual_seed(0)
    A, B = torch.randn(m, k, dtype=torch.float64), torch.randn(n, k, dtype=torch.float64)
    given_as = {
        "rows": lambda M: M.to(dtype),
        "columns": lambda M: M.to(dtype).t().contiguous().t(),
        "part": lambda M: torch.cat([M, M], 1).to(dtype)[:, : M.shape[1]],
    }[layout]
    product = matmul_nt(given_as(A), given_as(B))
    assert product.dtype is dtype
    # Exact float32 accumulation: reduced precision would be a thousand times less accurate.
    assert_close(product.double(), A @ B.t(), rtol=0, atol=1e-5 * k**0.5)


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)
def test_shifted_products_are_output_times_patch(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
):
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, bias=False, dtype=torch.float64)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    y = torch.randn_like(conv(x))
    patches = torch.nn.functional.unfold(x, kernel, dilation, padding, stride)
    by_group = patches.reshape(2, groups, -1, patches.shape[2])
    rows = y.flatten(2).reshape(2, groups, 6 // groups, -1)
    expected = torch.einsum("bgrp,bgdp->grd", rows, by_group).reshape(conv.weight.shape)
    assert_close(shifted_products(y, x, kernel, stride, padding, dilation, groups), expected)


def test_integers_are_fast_on_x86_with_onednn_only(monkeypatch: pytest.MonkeyPatch):
    for machine, onednn, expected in (("x86_64", True, True), ("x86_64", False, False), ("aarch64", True, False)):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda onednn=onednn: onednn)
        assert may_have_integer_kernels() == expected
