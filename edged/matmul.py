"""Fast versions of the two products that take nearly all of the computing time."""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

# torch multiplies float32 matrices with MKL, which leaves half of an AMD processor's vector units idle; oneDNN, which
# computes its convolutions, does not. torch offers oneDNN's product only to compiled models, under this name.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_WORTHWHILE = 1 << 24  # multiplications; below, the call costs more than the product


def may_have_integer_kernels() -> bool:
    """Return whether torch computes on 8-bit integers by oneDNN, on an x86 processor; elsewhere that is slow."""
    onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return platform.machine() in ("x86_64", "AMD64") and bool(onednn)


def matmul_nt(A: Tensor, B: Tensor) -> Tensor:
    """Compute A B^T, accumulated in the inputs' own precision.

    Args:
        A: Left matrix [m, k] with any strides. Not modified.
        B: Right matrix [n, k] with any strides, of A's type and device. Not modified.

    Returns:
        The product [m, n].
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
    """Sum y(p) x(p * stride + o * dilation - padding)^T over positions p, for each offset o in a kernel.

    This is the weight gradient of a convolution from x to y, which libraries compute as fast as the convolution.

    Args:
        y: Outputs [b, rows, H', W']. Not modified.
        x: Inputs [b, C, H, W]. Not modified.
        kernel_size: Number of offsets, down and across.
        stride: Stride of the convolution, down and across.
        padding: Zeros around x, above and below, left and right.
        dilation: Pixels between offsets, down and across.
        groups: Number of conv groups.

    Returns:
        The sums [rows, C / groups, *kernel_size].
    """
    shape = (y.shape[1], x.shape[1] // groups, *kernel_size)
    products: Tensor = conv2d_weight(x, shape, y, stride, padding, dilation, groups)  # type: ignore[no-untyped-call]
    return products


def _dense(matrix: Tensor) -> Tensor:
    # For part of a larger matrix oneDNN uses its reference implementation, which is hundreds of times slower.
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
