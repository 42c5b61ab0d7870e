"""The two products that nearly all of the work consists of, at the speed of the machine."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

# torch multiplies float32 matrices with MKL, which leaves half of an AMD processor's vector units idle; oneDNN, which
# runs its convolutions, does not. torch has oneDNN's product for compiled models only, under this name.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_WORTHWHILE = 1 << 24  # multiplications; below, the call itself costs more than the product


def matmul_nt(A: Tensor, B: Tensor) -> Tensor:
    """A B^T, accumulated in the inputs' own precision.

    Args:
        A: [m, k], any strides. Not modified.
        B: [n, k], any strides, of A's type and device. Not modified.

    Returns:
        [m, n].
    """
    large = A.shape[0] * B.shape[0] * A.shape[1] >= _WORTHWHILE
    if _ONEDNN is None or not large or A.dtype is not torch.float32 or A.device.type != "cpu":
        return A @ B.t()
    product: Tensor = _ONEDNN(_dense(A), _dense(B), None, "none", [], "")
    return product


def shifted_products(
    y: Tensor,
    x: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Sum over positions p of y(p) x(p * stride + o * dilation - padding)^T, for each offset o in a kernel.

    That is what a convolution's weight gradient computes, and what libraries run as fast as the convolution itself.

    Args:
        y: Outputs [b, rows, H', W'].
        x: Inputs [b, C, H, W].
        kernel_size: Extent of the offsets, down and across.
        stride: Of the convolution that leads from x to y; likewise padding, dilation and groups.
        padding: Zeros around x, above and below, left and right.
        dilation: Pixels between offsets.
        groups: Conv groups.

    Returns:
        [rows, C / groups, *kernel_size].
    """
    shape = (y.shape[1], x.shape[1] // groups, *kernel_size)
    products: Tensor = conv2d_weight(x, shape, y, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
    return products


def _dense(matrix: Tensor) -> Tensor:
    # For part of a larger matrix oneDNN takes its reference implementation, hundreds of times slower.
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
