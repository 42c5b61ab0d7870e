"""Layers are kept in float where their inputs cost too much, on a trained network with real images."""

from __future__ import annotations

import math

import pytest

from edged.calibration.dataset import build_cache
from edged.compress import Compressed, compress
from edged.evaluation.fidelity import fidelity
from edged.execution.build import build_graph
from edged.execution.placement import layers_to_keep, place
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.engine import Engines
from edged.pipeline.keeping import keep_layers_float, rank_layers
from edged.progress import SilentListener
from edged.spec import Method, QuantSpec
from tests.support.outliers import with_clipped_inputs
from tests.support.progress import NotedProgress
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


@pytest.fixture(scope="module")
def compressed(task: Task, network: LoadedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    cache = build_cache(task.calibration, tmp_path_factory.mktemp("cache"), network.input, limit=64)
    return compress(network.model, cache, QuantSpec(method=Method.RTN, bits=8, activation_bits=8))


def error(compressed: Compressed) -> float:
    return fidelity(compressed.reference_logits, compressed.logits).relative_error


class Gate:
    """Holds where outputs in ONNX Runtime are near full precision."""

    def __init__(self, network: LoadedNetwork, most: float) -> None:
        self.network, self.most = network, most
        self.seen: list[tuple[str, ...]] = []

    def __call__(self, tried: Compressed) -> bool:
        assert tried.activations is not None
        assert (tried.onnx, tried.engine) == (None, None)
        self.seen.append(tried.activations.in_float)
        return error(Engines(tried, self.network, 1).load("onnxruntime", "integer")) < self.most


def test_the_layer_that_costs_too_much_is_the_only_one_kept(compressed: Compressed, network: LoadedNetwork) -> None:
    damaged = with_clipped_inputs(compressed, "layer1.1.conv1")
    gate = Gate(network, 0.02)
    assert error(compressed) < gate.most < error(damaged)
    kept = keep_layers_float(damaged, gate)
    assert kept is not None
    assert kept.activations is not None
    assert kept.activations.in_float == ("layer1.1.conv1",)
    assert gate.seen == [("layer1.1.conv1",)]
    assert kept.quantized is damaged.quantized
    assert kept.reference_logits is damaged.reference_logits
    assert damaged.activations is not None
    assert damaged.activations.in_float == ()
    assert error(kept) < gate.most


def test_as_few_layers_are_kept_as_the_gate_needs(compressed: Compressed, network: LoadedNetwork) -> None:
    """Three steps, of one, two and four groups, find a number that does; one more finds that three groups do."""
    layers = ("layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1")
    damaged = with_clipped_inputs(compressed, *layers)
    gate, noted = Gate(network, 0.02), NotedProgress()
    kept = keep_layers_float(damaged, gate, noted)
    assert kept is not None
    assert kept.activations is not None
    assert list(noted.steps) == ["rank", "keep"]
    done, total = noted.steps["rank"][-1]
    assert done == total
    assert [done for done, _ in noted.steps["keep"]] == [1, 2, 3, 4]
    assert all(total == noted.steps["keep"][0][1] >= 4 for _, total in noted.steps["keep"])
    assert set(kept.activations.in_float) == set(layers)
    assert [len(seen) for seen in gate.seen] == [1, 2, 4, 3]


def test_no_network_is_returned_where_half_of_the_layers_do_not_do(compressed: Compressed) -> None:
    seen: list[int] = []

    def never(tried: Compressed) -> bool:
        assert tried.activations is not None
        seen.append(len(tried.activations.in_float))
        return False

    assert keep_layers_float(compressed, never) is None
    layers = len(compressed.layers)
    assert 0.3 * layers < seen[-1] <= layers // 2
    assert len(seen) <= 2 + math.log2(layers)


def test_a_network_without_ranges_has_nothing_to_keep(compressed: Compressed) -> None:
    assert keep_layers_float(compressed.varied(activations=None), lambda _: pytest.fail("it was judged")) is None


def test_layers_are_ranked_by_the_cost_of_their_inputs(compressed: Compressed) -> None:
    listener = SilentListener()
    steps: list[tuple[int, int]] = []
    listener.progress = lambda done, total: steps.append((done, total))  # type: ignore[method-assign]
    damaged = with_clipped_inputs(compressed, "layer2.1.conv2")
    placement = place(build_graph(damaged.model, damaged.quantized))
    ranked = rank_layers(damaged, placement, listener)
    assert ranked[0] == {"layer2.1.conv2"}
    assert set(ranked) == set(layers_to_keep(placement).values())
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)
