"""Tables of benchmarks.accuracy, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import goals_section, table
from benchmarks.quantization.goals import goals
from benchmarks.quantization.measure import METHODS
from benchmarks.quantization.networks import NETWORKS
from benchmarks.quantization.results import Key, Results, Row, paired_difference
from edged.comparators.peers.brevitas import PEERS

TITLES = {
    "resnet20": "CIFAR ResNet-20",
    "resnet32": "CIFAR ResNet-32",
    "resnet56": "CIFAR ResNet-56",
    "resnet18": "ResNet-18, imagenette at 128 px",
}
PAPER, OURS = "paper", "balanced"
# Methods that fit layers to quantized inputs: their loss relative to W is not meaningful.
PROPAGATING = ("balanced", "best", "brevitas-gptq", "brevitas-qronos")
COLUMNS = (
    "bits",
    "method",
    "top-1 %",
    "drop",
    "against `paper`",
    "agreement %",
    "held-out loss",
    "of `paper`'s",
    "by sums",
    "seconds",
    "added MiB",
)

COMMAND = "python -m benchmarks.accuracy --peers --out docs/accuracy"
NOTES = """\
- **against `paper`**: difference in top-1 ± its paired standard error (same images, one correct and one wrong).
- **agreement**: test images with the same class as in full precision.
- **held-out loss**: tr(Δ H Δᵀ) / tr(W H Wᵀ) with Δ = Ŵ - W and H of full-precision inputs on the held-out calibration
  images; geometric mean over layers, then as a share of `paper`'s. **by sums**: sum of losses over sum of energies.
  Methods marked * fit each layer to inputs that are already quantized, so their loss relative to W is not meaningful.
- **seconds**: wall time of quantizing; **added MiB**: peak resident memory while quantizing, minus the resident
  memory before. Each row runs in a fresh process.
- `rtn` is round to nearest on a least-squares grid. `obq` (arXiv 2208.11580) differs from `paper` only in the
  order of weights; its rows * d^3 work on ResNet-18 is 2,500 times that on ResNet-20, so it is left out there.
  `paper` is FastOBQ as published; new BatchNorm statistics are kept only if they lower the held-out error.
- Brevitas: weights only, every layer, per channel, `act_order=True`, the same calibration images and batches; scales
  asymmetric by its least-squares search, which is best for GPTQ on ResNet-20 at two bits (70.9 %; symmetric 28.7,
  symmetric without the lowest code 27.5).
"""


def document(results: Results, machine: str, figure: str = "") -> str:
    """Return the page with all tables.

    Args:
        results: Rows of all networks and methods.
        machine: Description of the machine.
        figure: Name of the plot in the folder of the page, without suffix.
    """
    parts = [f"# Accuracy\n\n`{COMMAND}`" + (f" on {machine}." if machine else ".")]
    parts.append(
        "1,024 calibration images, a tenth of them held out; all layers at the same width. Widths for each layer are in"
        " [mixed-precision.md](mixed-precision.md), with accuracy against bytes."
    )
    if figure:
        parts.append(f"![Points of top-1 lost, by bits]({figure}.svg)")
    parts.append(goals_section(goals(results)))
    for network in results.names(NETWORKS, 0):
        parts.append(f"## {TITLES[network]}\n\n" + network_table(results, network))
    parts += ["## Notes\n\n" + NOTES.strip()]
    if peers := _peer_rows(results):
        header = (
            "network",
            "bits",
            "peer",
            f"`{OURS}` - peer, top-1",
            "seconds, peer / ours",
            "CPU time",
            "added memory",
        )
        parts.insert(-1, f"## Brevitas against `{OURS}`\n\n" + table(header, peers))
    return "\n\n".join(parts) + "\n"


def network_table(results: Results, network: str, keys: Sequence[Key] | None = None) -> str:
    """Return the table of one network, or of some of its rows."""
    present = [key for key in results.rows if key[0] == network]
    ordered = sorted(keys or present, key=lambda key: (-key[1], METHODS.index(key[2])))
    reference = next((f"{results.rows[key].reference_top1:.2f}" for key in present), "")
    lines = [_cells(results.rows[key], results.rows.get((key[0], key[1], PAPER))) for key in ordered]
    return table(COLUMNS, [("32", "full precision", reference, *[""] * (len(COLUMNS) - 3)), *lines])


def _cells(row: Row, paper: Row | None) -> tuple[str, ...]:
    versus = share = ""
    if paper is not None and row.method != PAPER:
        versus = "{:+.2f} ± {:.2f}".format(*paired_difference(row, paper))
        share = f"{row.held_out / paper.held_out:.2f}"
    mark = "*" if row.method in PROPAGATING else ""
    return (
        str(row.bits),
        row.method,
        f"{row.top1:.2f}",
        f"{row.drop:+.2f}",
        versus,
        f"{row.agreement:.2f}",
        f"{row.held_out:.2e}{mark}",
        share + (mark if share else ""),
        f"{row.held_out_sum_ratio:.2e}",
        f"{row.seconds:.1f}",
        f"{row.added_mib:.0f}",
    )


def _peer_rows(results: Results) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for key in sorted(results.rows, key=lambda key: (list(NETWORKS).index(key[0]), -key[1], key[2])):
        row, ours = results.rows[key], results.rows.get((key[0], key[1], OURS))
        if row.method not in PEERS or ours is None:
            continue
        difference = "{:+.2f} ± {:.2f}".format(*paired_difference(ours, row))
        measures = (
            (row.seconds, ours.seconds),
            (row.cpu_seconds, ours.cpu_seconds),  # hardly depends on other work of the machine
            (row.added_mib, ours.added_mib),
        )
        ratios = [f"{theirs / mine:.1f}" for theirs, mine in measures]
        lines.append((row.network, str(row.bits), row.method, difference, *ratios))
    return lines
