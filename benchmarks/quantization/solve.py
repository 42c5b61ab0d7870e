"""Time the solve of one layer, relative to Eq. 12/13 as printed, to OBQ, and to its own building blocks.

Slow methods are measured on a part (some columns, some rows) and extrapolated by their operation counts; the part is
printed. Usage: python -m benchmarks.quantization.solve [--columns 64] [--device auto|cpu|cuda]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.options import add_device, parser_of
from edged.device import choose_device, device_name, exact_float32
from edged.quant.fastobq import quantize_columns, quantize_with_factor
from edged.quant.grid import Grid, minmax_grid
from edged.quant.linalg import damp_in_place, factorize
from edged.quant.obq import quantize_rows_greedily
from edged.spec import Scheme

T = TypeVar("T")
# Rows, columns and count of the 3x3 layers of a ResNet-18, which take nearly all of its solve.
RESNET18 = ((64, 576, 4), (128, 576, 1), (128, 1152, 3), (256, 1152, 1), (256, 2304, 3), (512, 2304, 1), (512, 4608, 3))
OBQ_ROWS, OBQ_COLUMNS = 4, 576


def main() -> None:
    """Print all three comparisons."""
    parser = parser_of(__doc__)
    parser.add_argument("--columns", type=int, default=64, help="columns of Eq. 12/13 that are timed")
    add_device(parser)
    options = parser.parse_args()
    device = choose_device(options.device)
    print(f"{device_name(device)}, {torch.get_num_threads()} threads")
    with exact_float32(device):
        check_codes(device)
        against_printed_equations(options.columns, device)
        against_building_blocks(device)
        against_obq(device)


def layer(rows: int, d: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Grid]:
    """Return random weights [rows, d], a damped Hessian [d, d] with a decaying spectrum, and a 4-bit grid."""
    generator = torch.Generator().manual_seed(d)
    X = torch.randn(d, 2 * d, generator=generator, dtype=dtype)
    X.mul_(torch.linspace(0.1, 2.0, d, dtype=dtype)[:, None])
    X[1:] += 0.5 * X[:-1]
    W = torch.randn(rows, d, generator=generator, dtype=dtype)
    W, X = W.to(device), X.to(device)
    H = X @ X.t() / d
    damp_in_place(H, torch.arange(len(H), device=device), 0.01)
    return W, H, minmax_grid(W, 4, Scheme.ASYMMETRIC)


def printed_equations(W: Tensor, H: Tensor, grid: Grid, order: Tensor, columns: int) -> Tensor:
    """Compute Eq. 12 and 13 as printed for the first `columns` columns of `order`, and return their codes."""
    W, inverse = W.clone(), torch.linalg.inv(H)
    codes = torch.zeros_like(W, dtype=torch.uint8)
    for j in order[:columns].tolist():
        codes[:, j] = grid.encode(W[:, j : j + 1])[:, 0]
        error = W[:, j] - grid.decode(codes[:, j : j + 1])[:, 0]
        W -= error[:, None] / inverse[j, j] * inverse[j]
        inverse -= torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def check_codes(device: torch.device) -> None:
    """Check that codes are identical in float64."""
    W, H, grid = layer(64, 576, device, torch.float64)
    order = torch.randperm(576, generator=torch.Generator().manual_seed(0)).to(device)
    same = torch.equal(quantize_columns(W, H, grid, order).codes, printed_equations(W, H, grid, order, 576))
    print(f"codes of a 64 x 576 layer in float64 identical to Eq. 12/13: {same}")


def against_printed_equations(columns: int, device: torch.device) -> None:
    """Compare whole layers; the printed equations run on the first columns only, because each takes the same time."""
    print(f"\n{'rows x d':>12} {'Eq. 12/13 s':>12} {'ours s':>8} {'ratio':>7}   (Eq. 12/13 from {columns} columns)")
    for rows, d in ((256, 2304), (512, 4608)):
        W, H, grid = layer(rows, d, device)
        order = torch.arange(d, device=device)
        inverse_s, _ = timed(lambda H=H: torch.linalg.inv(H))
        part_s, _ = timed(lambda W=W, H=H, grid=grid, order=order: printed_equations(W, H, grid, order, columns))
        ours_s = min(
            timed(lambda W=W, H=H, grid=grid, order=order: quantize_columns(W, H, grid, order))[0] for _ in "ab"
        )
        printed_s = inverse_s + max(part_s - inverse_s, 0.0) / columns * d
        print(f"{f'{rows} x {d}':>12} {printed_s:12.1f} {ours_s:8.2f} {printed_s / ours_s:7.1f}")


def against_building_blocks(device: torch.device) -> None:
    """Compare with one d x d Cholesky factorization and one rows x d x d product."""
    print(
        f"\n{'rows x d':>12} {'Cholesky ms':>12} {'product ms':>11} {'ours ms':>8} {'multiple':>9} {'factor given':>15}"
    )
    for rows, d, _ in RESNET18:
        W, H, grid = layer(rows, d, device)
        order = torch.arange(d, device=device)
        R = factorize(H, order).take_upper()
        cholesky_s, product_s, whole_s, rest_s = (
            min(timed(call)[0] for _ in range(3))
            for call in (
                lambda H=H: torch.linalg.cholesky(H),
                lambda W=W, H=H: W @ H,
                lambda W=W, H=H, grid=grid, order=order: quantize_columns(W, H, grid, order),
                lambda W=W, R=R, grid=grid, order=order: quantize_with_factor(W, R, grid, order),
            )
        )
        multiple = whole_s / (cholesky_s + product_s)
        print(
            f"{f'{rows} x {d}':>12} {1e3 * cholesky_s:12.1f} {1e3 * product_s:11.1f} {1e3 * whole_s:8.1f}"
            f" {multiple:9.2f} {1e3 * rest_s:12.1f} ms"
        )


def against_obq(device: torch.device) -> None:
    """Compare all 3x3 layers of a ResNet-18. OBQ does rows * d^3 work; it is timed on a few rows of one layer."""
    W, H, grid = layer(OBQ_ROWS, OBQ_COLUMNS, device)
    part_s, _ = timed(lambda: quantize_rows_greedily(W, H, grid, rows_at_once=OBQ_ROWS))
    obq_s = ours_s = 0.0
    for rows, d, count in RESNET18:
        obq_s += count * part_s * rows / OBQ_ROWS * (d / OBQ_COLUMNS) ** 3
        W, H, grid = layer(rows, d, device)
        order = torch.arange(d, device=device)
        ours_s += count * timed(lambda W=W, H=H, grid=grid, order=order: quantize_columns(W, H, grid, order))[0]
    print(f"\nResNet-18's 3x3 layers: OBQ {obq_s:.0f} s (from {OBQ_ROWS} rows of d = {OBQ_COLUMNS}: {part_s:.2f} s),")
    print(f"ours {ours_s:.1f} s: {obq_s / ours_s:.0f} times faster")


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Return the wall time of one call in seconds, and its result."""
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
