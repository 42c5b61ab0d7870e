from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ArtifactError
from edged.execution.build import build_graph
from edged.execution.graph import (
    Add,
    Affine,
    Concat,
    Conv,
    Graph,
    Linear,
    MaxPool,
    Node,
    Relu,
    Resize,
    Silu,
    Weight,
)
from edged.execution.placement import PASSING, head_parameters, layers_to_keep, place, place_nothing, place_quantized
from edged.execution.quantization import ActivationQuantization
from tests.support.artifact_samples import power_weight
from tests.support.executions import network

WEIGHT = Weight("first.weight", torch.zeros(3, 3, 1, 1))
OTHER = Weight("second.weight", torch.zeros(3, 3, 1, 1))
THIRD = Weight("third.weight", torch.zeros(3, 3, 1, 1))


def conv(name: str, source: str, weight: Weight = WEIGHT) -> Conv:
    return Conv(name, (source,), weight, torch.zeros(3))


def graph(*nodes: object) -> Graph:
    return Graph("x", 3, nodes, nodes[-1].name)  # type: ignore[arg-type, attr-defined]


def test_codes_of_power_levels_are_refused_where_integers_would_compute_on_them() -> None:
    weight = Weight("first.weight", torch.zeros(3, 3, 1, 1), power_weight((3, 3, 1, 1), 4))
    placed = graph(conv("a", "x", weight), Relu("b", ("a",)))
    with pytest.raises(ArtifactError, match=r"'first\.weight' has power levels, which no engine computes on integers"):
        place_quantized(placed, ActivationQuantization(8, {"x": (0.0, 1.0)}, ()))
    assert place_nothing(placed).values == []


def test_a_relu_is_absorbed_by_the_convolution_before_it() -> None:
    placed = place(graph(conv("a", "x"), Relu("b", ("a",)), conv("c", "b", OTHER)))
    assert placed.values == ["x", "b"]


def test_a_convolution_that_others_read_too_is_carried_as_codes() -> None:
    placed = place(graph(conv("a", "x"), Relu("b", ("a",)), Add("c", ("a", "b")), conv("d", "c", OTHER)))
    assert placed.values == ["x", "a", "b", "c"]


def test_the_value_before_a_silu_is_carried_as_codes_unless_it_computes_in_float() -> None:
    nodes = graph(conv("a", "x"), Silu("b", ("a",)), conv("c", "b", OTHER))
    assert place(nodes).values == ["x", "a", "b"]
    assert place(nodes, float_activations=True).values == ["x", "b"]


def test_a_relu_computes_on_codes_also_where_other_activations_do_not() -> None:
    nodes = graph(conv("a", "x"), MaxPool("p", ("a",), 3, 2, 1), Relu("b", ("p",)), conv("c", "b", OTHER))
    assert place(nodes, float_activations=True).values == ["x", "a", "b"]


def test_max_pooling_has_the_grid_of_the_value_that_it_reads() -> None:
    placed = place(
        graph(conv("a", "x"), Relu("b", ("a",)), MaxPool("p", ("b",), 3, 2, 1), MaxPool("q", ("p",), 3, 1, 1))
    )
    assert placed.owners == {"x": "x", "b": "b", "p": "b"}
    assert placed.values == ["x", "b"]


def test_each_input_of_a_join_has_its_own_grid() -> None:
    placed = place(graph(conv("a", "x"), conv("b", "x", OTHER), Concat("c", ("a", "b")), conv("d", "c")))
    assert placed.values == ["x", "a", "b", "c"]


def test_the_output_is_in_float_also_where_something_reads_it() -> None:
    nodes = Graph("x", 3, (conv("a", "x"), conv("b", "a", OTHER)), "a")
    assert place(nodes).values == ["x"]


def test_a_float_layer_asks_for_no_codes() -> None:
    nodes = graph(conv("a", "x"), conv("b", "a", OTHER))
    placed = place(nodes, ["second.weight"])
    assert (placed.values, placed.float_layers) == (["x"], {"b"})


def test_a_batchnorm_of_its_own_reads_no_codes() -> None:
    fc = Linear("c", ("b",), OTHER, torch.zeros(3))
    assert place(graph(conv("a", "x"), Affine("b", ("a",), torch.ones(3), torch.zeros(3)), fc)).values == ["x", "b"]


def test_nothing_is_placed_for_a_network_in_float() -> None:
    placed = place_nothing(graph(conv("a", "x"), conv("b", "a", OTHER)))
    assert (placed.values, placed.float_layers) == ([], {"a", "b"})


def test_values_of_a_resnet() -> None:
    """The image, each ReLU, each sum's own branch, the mean; the shortcuts of option A are convolutions."""
    built = build_graph(network("option A"))
    placed = place(built)
    sums = sum(isinstance(node, Add) for node in built.nodes)
    relus = sum(isinstance(node, Relu) for node in built.nodes)
    assert (sums, relus) == (9, 19)
    # Each sum reads a convolution that no ReLU follows.
    assert len(placed.values) == 1 + relus + sums + 2 + 1
    assert built.output not in placed.owners
    assert head_parameters(built) == []


def test_the_output_layers_of_a_detector_are_named() -> None:
    built = build_graph(network("yolov5"))
    assert head_parameters(built) == ["model.9.m.0.weight", "model.9.m.1.weight"]
    placed = place(built, head_parameters(built))
    assert placed.float_layers == {"model_9_m_0", "model_9_m_1"}
    assert not {"model_9_m_0", "model_9_m_1", built.output} & placed.owners.keys()


def test_a_value_that_only_a_kept_layer_reads_is_not_rounded() -> None:
    nodes = graph(conv("a", "x"), Relu("b", ("a",)), conv("c", "b", OTHER))
    placed = place(nodes, in_float=["second"])
    assert (placed.values, placed.float_layers) == (["x"], {"c"})


def test_a_value_that_an_integer_layer_reads_is_rounded_for_a_kept_one_too() -> None:
    nodes = graph(conv("a", "x"), conv("b", "x", OTHER), Add("c", ("a", "b")))
    placed = place(nodes, in_float=["second"])
    assert (placed.values, placed.float_layers) == (["x", "a", "b"], {"b"})
    assert place(nodes, in_float=["first", "second"]).values == ["a", "b"]  # no layer reads the sum


def test_a_sum_does_not_ask_for_the_codes_of_its_shortcut() -> None:
    block = (conv("a", "x"), Relu("b", ("a",)), conv("c", "b", OTHER), Add("d", ("c", "b")), conv("e", "d", THIRD))
    assert place(graph(*block)).values == ["x", "b", "c", "d"]
    assert place(graph(*block), in_float=["second"]).values == ["x", "c", "d"]


def test_a_branch_of_a_sum_is_rounded_unless_the_layer_after_the_sum_is_kept() -> None:
    block = (conv("a", "x"), conv("b", "x"), Add("c", ("a", "b")), Relu("d", ("c",)), conv("e", "d", OTHER))
    assert place(graph(*block)).values == ["x", "a", "b", "d"]
    assert place(graph(*block), in_float=["second"]).values == ["x"]


def test_all_parts_of_a_join_are_rounded_or_none() -> None:
    nodes = (conv("a", "x"), conv("b", "a", OTHER), Concat("c", ("a", "b")), conv("d", "c", THIRD))
    assert place(graph(*nodes), in_float=["second"]).values == ["x", "a", "b", "c"]
    assert place(graph(*nodes), in_float=["third"]).values == ["x", "a"]
    assert place(graph(*nodes), in_float=["second", "third"]).values == ["x"]


def test_a_kept_layer_frees_the_value_before_its_silu() -> None:
    nodes = graph(conv("a", "x"), Silu("b", ("a",)), conv("c", "b", OTHER))
    assert place(nodes, in_float=["second"]).values == ["x"]


def test_the_input_of_an_output_layer_that_is_in_float_by_rule_is_not_freed() -> None:
    nodes = graph(conv("a", "x"), Silu("b", ("a",)), conv("c", "b", OTHER))
    assert place(nodes, ["second.weight"]).values == ["x", "a"]
    assert place(nodes, ["second.weight"], ["second"]).values == ["x"]


def test_an_unknown_layer_cannot_be_kept() -> None:
    with pytest.raises(ArtifactError, match="the network has no layer 'third' to keep in float; quantize"):
        place(graph(conv("a", "x"), conv("b", "a", OTHER)), in_float=["third", "first"])


@pytest.mark.parametrize("kind", ["option A", "resnet18", "yolov5", "focus", "head of fastai"])
def test_each_value_is_freed_by_its_layers_and_by_no_fewer(kind: str) -> None:
    built = build_graph(network(kind))
    placed = place(built, head_parameters(built))
    needed = layers_to_keep(placed)
    assert needed.keys() == set(placed.values)
    for value, layers in needed.items():
        assert value not in place(built, head_parameters(built), layers).values
        for layer in layers:
            assert value in place(built, head_parameters(built), layers - {layer}).values
    everything = frozenset[str]().union(*needed.values())
    assert place(built, head_parameters(built), everything).values == []


LAYERS = st.sampled_from(["conv", "relu", "silu", "add", "concat", "pool", "resize"])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A network of up to twelve operations, each of which reads any earlier values."""
    nodes: list[Node] = []
    names = ["x"]
    for index in range(draw(st.integers(1, 12))):
        kind, name = draw(LAYERS), f"v{index}"
        one, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        made: dict[str, Node] = {
            "conv": conv(name, one, Weight(f"{name}.weight", torch.zeros(3, 3, 1, 1))),
            "relu": Relu(name, (one,)),
            "silu": Silu(name, (one,)),
            "add": Add(name, (one, other)),
            "concat": Concat(name, (one, other)),
            "pool": MaxPool(name, (one,), 3, 1, 1),
            "resize": Resize(name, (one,), 2),
        }
        nodes.append(made[kind])
        names.append(name)
    return Graph("x", 3, tuple(nodes), names[-1])


@given(graphs())
def test_every_operation_on_integers_has_codes_to_read(built: Graph) -> None:
    placed = place(built)
    absorbed = {node.inputs[0] for node in built.nodes if isinstance(node, Relu)}
    for node in built.nodes:
        if not isinstance(node, Relu):
            assert set(node.inputs) - {built.output} <= placed.owners.keys()
        assert set(node.inputs) <= placed.owners.keys() | absorbed | {built.output}


@given(graphs())
def test_only_what_is_read_is_carried_and_never_the_output(built: Graph) -> None:
    placed = place(built)
    readers = built.readers()
    assert built.output not in placed.owners
    assert all(readers[name] for name in placed.owners)


@given(graphs())
def test_a_value_has_its_own_grid_or_that_of_the_value_that_it_repeats(built: Graph) -> None:
    placed, producers = place(built), built.producers()
    order = [built.input, *producers]
    assert list(placed.owners) == sorted(placed.owners, key=order.index)
    for name, owner in placed.owners.items():
        while name != owner:
            node = producers[name]
            assert isinstance(node, PASSING)
            name = node.inputs[0]
            assert placed.owners[name] == owner


@given(graphs(), st.data())
def test_more_layers_in_float_need_no_more_codes(built: Graph, data: st.DataObject) -> None:
    names = [node.weight.parameter for node in built.weighted()]
    some = data.draw(st.sets(st.sampled_from(names))) if names else set()
    more = data.draw(st.sets(st.sampled_from(names))) | some if names else set()
    few, many = place(built, some), place(built, more)
    assert many.owners.keys() <= few.owners.keys()
    assert few.float_layers <= many.float_layers == {name.removesuffix(".weight") for name in more}


@given(graphs())
def test_activations_in_float_need_no_more_codes(built: Graph) -> None:
    assert place(built, float_activations=True).owners.keys() <= place(built).owners.keys()
