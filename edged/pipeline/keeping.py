"""Layers that are kept in float, because rounding their inputs costs more accuracy than a gate allows.

Each value's rounding is judged by the error of the outputs when nothing else is rounded. The layers whose inputs cost
most are kept first, in growing numbers until the gate holds; then as few of them as it needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from edged.compress import Compressed
from edged.device import CPU, on_cpu
from edged.evaluation.fidelity import squared_error
from edged.execution.build import build_graph
from edged.execution.placement import Placement, layer_name, layers_to_keep, place
from edged.execution.quantization import ActivationQuantization
from edged.execution.simulator import run_rounded
from edged.progress import ProgressListener, SilentListener

# Ranking takes a pass over these images for each layer. Single errors are compared, which takes few images.
RANKING_PIXELS = 8 * 224**2
RANKING_BATCH = 4

T = TypeVar("T")


def keep_layers_float(
    compressed: Compressed, holds: Callable[[Compressed], bool], listener: ProgressListener | None = None
) -> Compressed | None:
    """Keep layers in float until a condition holds, those first whose inputs cost most when they are rounded.

    Args:
        compressed: A quantized network with ranges of its activations. Not modified.
        holds: Returns whether a network is good enough. It is called at most 2 log2(layers) times, with networks whose
            `engine` and `onnx` are None.
        listener: Receives the stages "rank", which counts images and layers, and "keep", which counts networks.

    Returns:
        The network with the fewest layers in float for which `holds` was true, named in `activations.in_float`. None if
        it is false even with half of the layers in float, or if the network has no ranges.
    """
    if compressed.activations is None:
        return None
    on_host = {name: weight.to(CPU) for name, weight in compressed.quantized.items()}
    graph = build_graph(on_cpu(compressed.model), on_host)
    placement = place(graph, compressed.activations.float_layers)
    watcher: ProgressListener = listener or SilentListener()
    with watcher.stage("rank"):
        ranked = rank_layers(compressed, placement, watcher)
    names = [name for node in graph.weighted() if (name := layer_name(node))]
    unions = _growing(ranked, len(names) // 2)

    def with_kept(count: int) -> Compressed | None:
        """Return the network with the first unions of layers kept, if it is good enough."""
        kept = unions[count - 1]
        activations = _keeping(placement, compressed.activations, [name for name in names if name in kept])
        tried = compressed.varied(activations=activations, onnx=None, engine=None)
        return tried if holds(tried) else None

    with watcher.stage("keep"):
        return _fewest(with_kept, len(unions), watcher)


def _fewest(attempt: Callable[[int], T | None], most: int, listener: ProgressListener) -> T | None:
    """Return what `attempt` returns for the least number from 1 to `most` for which that is not None.

    It is called with numbers that double, and then bisect: for at most 2 log2(most) + 1 of them.
    """
    calls, most_calls = 0, 2 * most.bit_length()

    def counted(number: int) -> T | None:
        nonlocal calls
        result = attempt(number)
        calls += 1
        listener.progress(calls, most_calls)
        return result

    failed, count, found = 0, 1, None
    while found is None and failed < most:
        found = counted(count)
        if found is None:
            failed, count = count, min(2 * count, most)
    while found is not None and count - failed > 1:
        middle = (failed + count) // 2
        fewer = counted(middle)
        if fewer is None:
            failed = middle
        else:
            count, found = middle, fewer
    return found


def rank_layers(
    compressed: Compressed, placement: Placement, listener: ProgressListener | None = None
) -> list[frozenset[str]]:
    """Return the groups of layers that can be kept in float, the one first whose inputs cost most.

    The cost is |y' - y|^2 over the outputs y in float, and y' with only those values rounded that the group frees. A
    group are the layers that read one value, which is rounded for any one of them.

    Args:
        compressed: A quantized network with ranges of its activations.
        placement: Its values that are carried as codes, with no layer kept in float.
        listener: Receives the number of groups that are ranked.
    """
    assert compressed.activations is not None  # noqa: S101 - a placement comes with ranges
    watcher: ProgressListener = listener or SilentListener()
    cache, grids = compressed.cache, compressed.activations.grids()
    count = max(2, RANKING_PIXELS // cache.input.size**2)
    some = cache.held_out[:: max(1, len(cache.held_out) // count)][:count]
    needed = layers_to_keep(placement)
    groups = list(dict.fromkeys(needed.values()))
    everything = frozenset(node.name for node in placement.graph.weighted())
    cost = dict.fromkeys(groups, 0.0)
    with torch.inference_mode():
        for start in range(0, len(some), RANKING_BATCH):
            batch = cache.batch(some[start : start + RANKING_BATCH])
            exact = run_rounded(Placement(placement.graph, {}, everything), {}, batch)
            for done, group in enumerate(groups, 1):
                freed = {name for name, layers in needed.items() if layers <= group}
                owners = {name: owner for name, owner in placement.owners.items() if owner in freed}
                alone = Placement(placement.graph, owners, everything)
                cost[group] += squared_error(exact, run_rounded(alone, grids, batch))
                watcher.progress(start * len(groups) + done * len(batch), len(some) * len(groups))
    return sorted(groups, key=cost.__getitem__, reverse=True)


def _growing(ranked: Sequence[frozenset[str]], most: int) -> list[frozenset[str]]:
    """Return the unions of the first groups, up to a number of layers."""
    unions: list[frozenset[str]] = []
    union = frozenset[str]()
    for group in ranked:
        union |= group
        if len(union) > most:
            break
        if not unions or union != unions[-1]:
            unions.append(union)
    return unions


def _keeping(
    placement: Placement, activations: ActivationQuantization | None, in_float: Sequence[str]
) -> ActivationQuantization:
    assert activations is not None  # noqa: S101 - there are ranges
    values = place(placement.graph, activations.float_layers, in_float).values
    ranges = {name: activations.ranges[name] for name in values}
    return dataclasses.replace(activations, ranges=ranges, in_float=tuple(in_float))
