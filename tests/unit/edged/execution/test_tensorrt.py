from __future__ import annotations

import dataclasses
import random

import onnx
import pytest
import torch

from edged.errors import ArtifactError
from edged.execution.graph import Add, Concat, Conv, GlobalAveragePool, Graph, MaxPool, Relu, Silu, Weight
from edged.execution.grids import ActivationGrid
from edged.execution.onnx_writer import TENSORRT_DIALECT
from edged.execution.placement import Placement, layer_name, place
from edged.execution.quantization import ActivationQuantization
from edged.execution.simulator import Simulator
from edged.execution.tensorrt import place_for_tensorrt
from edged.execution.tensorrt_rules import check_tensorrt
from edged.spec import Scheme
from tests.support.executions import NETWORKS, executed, relative_error, run

WEIGHT = Weight("w", torch.zeros(3, 3, 1, 1))


def conv(name: str, source: str) -> Conv:
    return Conv(name, (source,), WEIGHT, torch.zeros(3))


def placed(*nodes: object) -> tuple[Placement, dict[str, ActivationGrid]]:
    """Place a graph; the n-th value has the range [-n, 2 n]."""
    cpu = place(Graph("x", 3, nodes, nodes[-1].name))  # type: ignore[arg-type, attr-defined]
    ranges = {name: (-float(n), 2.0 * n) for n, name in enumerate(cpu.values, 1)}
    return place_for_tensorrt(cpu, ActivationQuantization(8, ranges))


def test_inputs_of_layers_are_carried_as_codes_and_not_their_outputs() -> None:
    placement, grids = placed(conv("a", "x"), Silu("b", ("a",)), conv("c", "b"), Relu("d", ("c",)), conv("e", "d"))
    assert placement.owners == {"x": "x", "b": "b", "d": "d"}
    assert grids["x"] == ActivationGrid(float(torch.tensor(2 / 127)), 0, signed=True)


def test_of_a_sum_only_the_shortcut_is_carried_as_codes() -> None:
    block = (conv("a", "x"), Relu("b", ("a",)), conv("c", "b"), Add("d", ("c", "x")), Relu("e", ("d",)), conv("f", "e"))
    placement, _ = placed(*block)
    assert [*placement.owners] == ["x", "b", "e"]


def test_a_shortcut_with_a_layer_of_its_own_is_carried_as_codes() -> None:
    placement, _ = placed(conv("a", "x"), conv("s", "x"), Add("b", ("a", "s")), Relu("c", ("b",)), conv("d", "c"))
    assert [*placement.owners] == ["x", "s", "c"]


def test_values_around_a_join_share_the_widest_range() -> None:
    placement, grids = placed(
        *(conv("a", "x"), Relu("b", ("a",)), MaxPool("p", ("b",), 3, 1, 1), MaxPool("q", ("p",), 3, 1, 1)),
        *(conv("c", "x"), Relu("d", ("c",)), Concat("j", ("b", "p", "q", "d")), conv("e", "j")),
    )
    assert placement.owners == {"x": "x", "b": "b", "p": "b", "q": "b", "d": "b", "j": "b"}
    assert grids.keys() == {"x", "b"}
    assert grids["b"].range[1] == pytest.approx(2 * 4)  # j is the fourth value with a range of its own


def test_joins_that_share_a_value_share_one_scale() -> None:
    placement, _ = placed(
        *(conv("a", "x"), Relu("b", ("a",)), conv("c", "x"), Relu("d", ("c",)), conv("k", "x"), Relu("l", ("k",))),
        *(Concat("i", ("b", "d")), Concat("j", ("d", "l")), conv("e", "i"), conv("f", "j"), Concat("o", ("e", "f"))),
    )
    assert {placement.owners[name] for name in "bdlij"} == {"b"}


def test_the_input_of_an_average_is_in_float_and_its_output_is_not() -> None:
    placement, _ = placed(conv("a", "x"), Relu("b", ("a",)), GlobalAveragePool("m", ("b",)), conv("c", "m"))
    assert [*placement.owners] == ["x", "m"]


def test_a_value_that_only_float_layers_read_is_in_float() -> None:
    done = executed("yolov5", 7, Scheme.SYMMETRIC)
    placement = done.for_tensorrt().placement
    readers = placement.graph.readers()
    for name in placement.owners:
        assert not all(reader.name in placement.float_layers for reader in readers[name])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet50 v1"])
@pytest.mark.parametrize("bits", [4, 8])
def test_models_keep_the_rules_and_compute_on_a_cpu_as_simulated(name: str, bits: int) -> None:
    done = executed(name, bits, Scheme.SYMMETRIC).for_tensorrt()
    model = done.onnx(dialect=TENSORRT_DIALECT)
    onnx.checker.check_model(model, full_check=True)
    assert check_tensorrt(model) == []
    simulated = Simulator(done.placement, done.grids).run(done.images)
    with torch.inference_mode():
        assert relative_error(simulated, done.network(done.images)) < 0.2
    assert relative_error(run(model, done.images), simulated) < 0.05


@pytest.mark.parametrize("bits", [4, 7])
def test_asymmetric_weights_are_refused(bits: int) -> None:
    done = executed("option A", bits, Scheme.ASYMMETRIC)
    with pytest.raises(ArtifactError, match=r"'conv1\.weight' is asymmetric, .* with --scheme symmetric"):
        done.for_tensorrt()


def test_the_placement_is_not_modified() -> None:
    done = executed("yolov5", 4, Scheme.SYMMETRIC)
    before = dataclasses.replace(done.placement, owners=dict(done.placement.owners))
    done.for_tensorrt()
    assert done.placement.owners == before.owners


@pytest.mark.parametrize("name", ["option A", "option B", "resnet18", "yolov5", "relu", "head of fastai"])
@pytest.mark.parametrize("seed", range(3))
def test_models_with_any_layers_kept_in_float_keep_the_rules(name: str, seed: int) -> None:
    done = executed(name, 7, Scheme.SYMMETRIC)
    layers = [layer_name(node) for node in done.placement.graph.weighted() if layer_name(node)]
    chosen = random.Random(seed).sample(layers, (1, len(layers) // 2, len(layers) - 2)[seed])
    done = done.keeping(chosen).for_tensorrt()
    model = done.onnx(dialect=TENSORRT_DIALECT)
    onnx.checker.check_model(model, full_check=True)
    assert check_tensorrt(model) == []
    simulated = Simulator(done.placement, done.grids).run(done.images)
    assert relative_error(run(model, done.images), simulated) < 0.05


def test_silu_computes_in_float_for_tensorrt_whatever_cpus_do() -> None:
    """The model is the same for both: TensorRT rounds neither a sigmoid nor the value before it."""
    done = executed("yolov5", 4, Scheme.SYMMETRIC)
    models = [each.for_tensorrt().onnx(dialect=TENSORRT_DIALECT) for each in (done, done.with_float_silu())]
    assert models[0] == models[1]
    assert check_tensorrt(models[0]) == []
