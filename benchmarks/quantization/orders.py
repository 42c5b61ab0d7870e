"""Compare column orders on a CIFAR ResNet, shared by all rows or for each row, like Table 3 of the paper.

Layers are quantized independently, with the grid, damping and augmented images of recipe `paper`; BatchNorm statistics
are re-estimated for every row of the table, whether that helps or not, so that rows differ only in the order.
`parallel` is FastOBQ; `per-row` gives each row of a layer its own fixed order and factor, for orders that depend on the
row; `greedy` is OBQ, which chooses the next column after every weight. Requires EDGED_DATA. Usage:

    python -m benchmarks.orders [--network resnet20] [--bits 4 3 2] [--greedy] [--out docs/orders.md]
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.markdown import line
from benchmarks.options import parser_of
from benchmarks.quantization.heldout import layer_loss, layer_moments, summarize
from benchmarks.quantization.networks import NETWORKS, TEST_BATCH, Loaded, load
from edged.calibration.batchnorm import reestimate_batchnorm
from edged.calibration.moments import hessian
from edged.engine.images import AugmentedImages
from edged.evaluation.classification import accuracy, predict
from edged.models.layers import quantizable_layers
from edged.quant.fastobq import quantize_columns
from edged.quant.grid import Grid
from edged.quant.linalg import Factor, damp_in_place
from edged.quant.obq import quantize_rows_greedily
from edged.quant.ordering import column_order
from edged.quant.scale_search import weighted_grid
from edged.spec import Order, QuantSpec, recipe

SHARED = (Order.NONE, Order.ERROR, Order.WEIGHT, Order.HESSIAN, Order.MIN_PIVOT, Order.SENSITIVITY)
OWN = (Order.ERROR, Order.WEIGHT, Order.SENSITIVITY)
HEADER = ("order", "first", "rows")

# Codes [rows, d] from W [rows, d], damped H [d, d], its factor and the grid.
Solve = Callable[[Tensor, Tensor, Factor, Grid], Tensor]


@dataclass(frozen=True)
class Variant:
    """A row of the table: its three labels and the function that finds codes."""

    labels: tuple[str, str, str]
    solve: Solve


@dataclass(frozen=True)
class Layers:
    """A network and the data that all variants share: H of each layer by name, of calibration and held-out images."""

    loaded: Loaded
    spec: QuantSpec
    calibration: dict[str, Tensor]
    held_out: dict[str, Tensor]


def main() -> None:
    """Print the table, and write it if requested."""
    parser = parser_of(__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--greedy", action="store_true", help="also measure OBQ, which takes minutes for each width")
    parser.add_argument("--cache", type=Path, help="folder for decoded images; by default a temporary one")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    columns = [*HEADER, *(f"W{bits} {what}" for bits in options.bits for what in ("top-1 %", "held-out loss"))]
    lines: list[str] = []

    def say(*cells: str) -> None:
        lines.append(line(cells))
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        layers = prepare(options.network, Path(options.cache or folder))
        reference = accuracy(layers.loaded.reference, layers.loaded.labels).top1
        say(*columns)
        say(*["---"] * len(columns))
        for variant in variants(options.greedy):
            measured = [measure(layers, variant.solve, bits) for bits in options.bits]
            say(*variant.labels, *(cell for top1, loss in measured for cell in (f"{top1:.2f}", f"{loss:.2e}")))
    if options.out:
        command = f"python -m benchmarks.orders --bits {' '.join(map(str, options.bits))}"
        title = f"# Orders\n\n`{command}`: {options.network}, full precision {reference:.2f} %.\n\n"
        options.out.write_text(title + "\n".join([*lines, "", _notes(), ""]))


def prepare(network: str, cache_root: Path) -> Layers:
    """Load a network and compute both Hessians of every layer, once for all variants."""
    loaded, spec = load(network, cache_root), recipe("paper")
    augmented = AugmentedImages(loaded.calibration, spec.augmentation, spec.seed)
    size = loaded.batch_size
    seen = layer_moments(
        loaded.model, (augmented.batch(start, start + size) for start in range(0, len(augmented), size))
    )
    unseen = layer_moments(loaded.model, loaded.calibration.batches(loaded.calibration.held_out, size))
    return Layers(
        loaded,
        spec,
        {name: hessian(moments) for name, moments in seen.items()},
        {name: hessian(moments) for name, moments in unseen.items()},
    )


def variants(greedy: bool) -> Iterator[Variant]:
    """Yield all rows of the table."""
    for order in SHARED:
        for descending in (True, False) if order is not Order.NONE else (True,):
            first = ("highest" if descending else "lowest") if order is not Order.NONE else ""
            yield Variant((order.value, first, "parallel"), shared_order(order, descending))
            if order in OWN:
                yield Variant((order.value, first, "per-row"), own_orders(order, descending))
    if greedy:
        yield Variant(
            ("sensitivity, each time anew", "lowest", "greedy (OBQ)"),
            lambda W, H, _, grid: quantize_rows_greedily(W, H, grid).codes,
        )


def shared_order(order: Order, descending: bool) -> Solve:
    """Return FastOBQ, with one order for all rows."""
    return lambda W, H, factor, grid: (
        quantize_columns(W, H, grid, column_order(W, H, factor, grid, order, descending)).codes
    )


def own_orders(order: Order, descending: bool) -> Solve:
    """Return FastOBQ with a separate order for each row, by the row's own scores."""

    def solve(W: Tensor, H: Tensor, factor: Factor, grid: Grid) -> Tensor:
        scores = _weight_scores(W, factor, grid, order)
        orders = torch.sort(scores, dim=1, descending=descending, stable=True).indices
        return quantize_rows_in_orders(W, H, grid, orders)

    return solve


def quantize_rows_in_orders(W: Tensor, H: Tensor, grid: Grid, orders: Tensor) -> Tensor:
    """Quantize by FastOBQ's recursion with a separate factor for every row.

    Args:
        W: Weights [rows, d]. Not modified.
        H: Damped Hessian [d, d]. Not modified.
        grid: One scale per row.
        orders: A permutation of range(d) for each row, [rows, d].

    Returns:
        Codes uint8 [rows, d], in stored column order.
    """
    backwards = orders.flip(1)
    # P H P^T = R R^T with R upper, for each row: [rows, d, d]
    R = torch.linalg.cholesky(H[backwards[:, :, None], backwards[:, None, :]]).flip(1, 2)
    targets = W.gather(1, orders)
    carried, codes = torch.zeros_like(targets), torch.zeros_like(targets)
    for j in range(W.shape[1]):
        wanted = targets[:, j] + carried[:, j] / R[:, j, j]
        code = torch.round(wanted / grid.scale).add_(grid.zero_point).clamp_(0, grid.max_code)
        codes[:, j] = code
        delta = targets[:, j] - (code - grid.zero_point) * grid.scale
        carried[:, j:].addcmul_(R[:, j, j:], delta[:, None])
    return torch.zeros_like(codes).scatter_(1, orders, codes).to(torch.uint8)


def _weight_scores(W: Tensor, factor: Factor, grid: Grid, order: Order) -> Tensor:
    if order is Order.WEIGHT:
        return W.abs()
    error = grid.nearest(W) - W
    return error.abs() if order is Order.ERROR else error.square() / factor.take_inverse_diagonal()


def measure(layers: Layers, solve: Solve, bits: int) -> tuple[float, float]:
    """Return top-1 in percent and the held-out layer loss of one variant at one width."""
    loaded = layers.loaded
    model = copy.deepcopy(loaded.model)  # BatchNorm statistics change in place
    losses: dict[str, tuple[float, float]] = {}
    for name, layer in quantizable_layers(model).items():
        weight = layer.weight.detach()
        decoded = quantize(weight, layers.calibration[name], layers.spec, solve, bits)
        losses[name] = layer_loss(weight, decoded, layers.held_out[name])
        layer.weight = nn.Parameter(decoded, requires_grad=False)
    reestimate_batchnorm(model, loaded.calibration.batches(loaded.calibration.calibration, loaded.batch_size))
    logits = predict(model, loaded.test, torch.arange(len(loaded.test)), batch_size=TEST_BATCH)
    return accuracy(logits, loaded.labels).top1, summarize(losses).geometric_mean


def quantize(weight: Tensor, H: Tensor, spec: QuantSpec, solve: Solve, bits: int) -> Tensor:
    """Quantize one layer with the damping and grid of `paper` and codes of `solve`; return the decoded weight."""
    if H.shape[0] != 1:
        raise NotImplementedError("a grouped convolution has no single order; choose another network")
    W, matrix = weight.flatten(1), H[0].clone()
    damping, factor = damp_in_place(matrix, torch.arange(len(matrix)), spec.damp_ratio, spec.damp_absolute)
    live = W.masked_fill(damping.dead, 0)
    grid = weighted_grid(live, torch.ones_like(matrix.diagonal()), bits, spec.scheme)
    return grid.decode(solve(live, matrix, factor, grid)).reshape(weight.shape)


def _notes() -> str:
    return (
        "`first` is the score that is quantized first. `parallel`: one order for all rows of a layer, by the sum of"
        " scores\nover rows; `per-row`: a separate order for each row; min-pivot, hessian and none are the same for all"
        " rows. Held-out\nloss: relative, geometric mean over layers. All other settings are those of recipe `paper`;"
        " BatchNorm statistics are\nalways re-estimated."
    )


if __name__ == "__main__":
    main()
