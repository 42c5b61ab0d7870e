"""The project's goals and the measured values."""

from __future__ import annotations

import math

from benchmarks.markdown import Goal, goal
from benchmarks.quantization.results import Results, Row, paired_difference
from edged.comparators.peers.brevitas import PEERS

MEAN_DROP = {4: 0.15, 3: 0.5, 2: 3.0}  # `balanced`, points of top-1
HELD_OUT = {4: 0.85, 2: 0.65}  # `fast`, relative to `paper`
QRONOS_W2 = 78.5  # top-1 of ResNet-20 at two bits
FASTER, MEMORY = 10.0, 2.0  # Brevitas' seconds and added memory relative to `balanced`
SIGMAS = 2.0  # smaller differences count as noise


def goals(results: Results) -> list[Goal]:
    """Return every goal for which there are rows."""
    found: list[Goal] = []
    for bits, limit in MEAN_DROP.items():
        if drops := [row.drop for row in _rows(results, "balanced", bits)]:
            mean = sum(drops) / len(drops)
            what = f"`balanced` W{bits}: mean drop at most {limit} points"
            found.append(goal(what, f"{mean:+.2f} over {len(drops)} networks", mean <= limit))
    if row := results.rows.get(("resnet20", 2, "balanced")):
        what = f"`balanced` W2, ResNet-20: top-1 at least {QRONOS_W2}"
        found.append(goal(what, f"{row.top1:.2f}", row.top1 >= QRONOS_W2))
    for bits, limit in HELD_OUT.items():
        if ratios := [row.held_out / other.held_out for row, other in _pairs(results, "fast", "paper", bits)]:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            what = f"`fast` W{bits}: held-out layer loss at most {limit} of `paper`'s"
            measured = f"{mean:.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
            found.append(goal(what, measured, mean <= limit))
    for other, what in (("paper", "never below `paper`"), ("obq", "as accurate as OBQ"), *_peers()):
        found += _never_below(results, other, f"`balanced`: {what}")
    return found + _costs(results)


def _costs(results: Results) -> list[Goal]:
    pairs = [pair for peer in PEERS for pair in _pairs(results, peer, "balanced")]
    if not pairs:
        return []
    seconds = [peer.seconds / ours.seconds for peer, ours in pairs]
    memory = [peer.added_mib / ours.added_mib for peer, ours in pairs]
    return [
        goal(
            f"Brevitas: `balanced` at least {FASTER:g} times faster",
            f"{min(seconds):.1f} to {max(seconds):.1f} times",
            min(seconds) >= FASTER,
        ),
        goal(
            f"Brevitas: `balanced` at most 1/{MEMORY:g} of its added memory",
            f"1/{min(memory):.1f} to 1/{max(memory):.1f}",
            min(memory) >= MEMORY,
        ),
    ]


def _never_below(results: Results, method: str, what: str) -> list[Goal]:
    pairs = _pairs(results, "balanced", method)
    if not pairs:
        return []
    # In standard errors of the difference, which is 0 for equal predictions.
    scores = [(difference / max(error, 1e-9), difference, error, ours) for ours, difference, error in _compared(pairs)]
    score, difference, error, row = min(scores, key=lambda entry: entry[0])
    worst = f"worst: {row.network} W{row.bits} {difference:+.2f} ± {error:.2f}"
    return [goal(f"{what}, within {SIGMAS:g} standard errors", worst, score >= -SIGMAS)]


def _compared(pairs: list[tuple[Row, Row]]) -> list[tuple[Row, float, float]]:
    return [(ours, *paired_difference(ours, other)) for ours, other in pairs]


def _peers() -> list[tuple[str, str]]:
    return [(peer, f"as accurate as {peer}") for peer in PEERS]


def _rows(results: Results, method: str, bits: int) -> list[Row]:
    return [row for row in results.rows.values() if row.method == method and row.bits == bits]


def _pairs(results: Results, method: str, other: str, bits: int | None = None) -> list[tuple[Row, Row]]:
    """Return pairs of rows of both methods for the same network and width."""
    return [
        (row, results.rows[key])
        for row in results.rows.values()
        if row.method == method and bits in (None, row.bits)
        if (key := (row.network, row.bits, other)) in results.rows
    ]
