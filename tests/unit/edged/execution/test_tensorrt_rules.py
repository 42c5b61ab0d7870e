"""Each rule is broken on its own, in a model that keeps the others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edged.execution.onnx_writer import TENSORRT_DIALECT
from edged.execution.tensorrt_rules import check_tensorrt
from edged.spec import Scheme
from tests.support.executions import executed

RESNET = executed("option B", 8, Scheme.SYMMETRIC).for_tensorrt().onnx(dialect=TENSORRT_DIALECT)
YOLO = executed("yolov5", 8, Scheme.SYMMETRIC).for_tensorrt().onnx(dialect=TENSORRT_DIALECT)


def copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def node(model: ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def replace_constant(model: ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def quantize(model: ModelProto, value: str, like: str) -> None:
    """Let the readers of a value read it rounded to the grid of another."""
    scale, zero = f"{like}.scale", f"{like}.zero_point"
    index = next(i for i, entry in enumerate(model.graph.node) if value in entry.output) + 1
    for reader in model.graph.node:
        reader.input[:] = [f"{value}.more" if name == value else name for name in reader.input]
    pair = [
        helper.make_node("QuantizeLinear", [value, scale, zero], [f"{value}.more.codes"], name=f"{value}.more.codes"),
        helper.make_node(
            "DequantizeLinear", [f"{value}.more.codes", scale, zero], [f"{value}.more"], name=f"{value}.more"
        ),
    ]
    for entry in reversed(pair):
        model.graph.node.insert(index, entry)


def test_models_of_the_writer_keep_the_rules() -> None:
    assert check_tensorrt(RESNET) == check_tensorrt(YOLO) == []


def test_a_model_in_float_keeps_the_rules() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["c"], name="c"), helper.make_node("Relu", ["c"], ["d"], name="d")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "abd"]
    assert check_tensorrt(helper.make_model(helper.make_graph(nodes, "float", ends[:2], ends[2:]))) == []


def test_a_model_for_cpus_does_not_keep_the_rules() -> None:
    found = check_tensorrt(executed("option B", 8, Scheme.SYMMETRIC).onnx())
    assert any("is not symmetric in int8" in text for text in found)
    assert any("has a bias that is not a constant in float" in text for text in found)
    assert any("both inputs of Add" in text for text in found)


def test_unsigned_codes() -> None:
    model = copy(RESNET)
    replace_constant(model, "x.zero_point", np.array(0, np.uint8))
    assert check_tensorrt(model) == [
        "QuantizeLinear x.codes is not symmetric in int8",
        "DequantizeLinear x.dequantized is not symmetric in int8",
    ]


def test_a_zero_point() -> None:
    model = copy(RESNET)
    replace_constant(model, "relu.zero_point", np.array(3, np.int8))
    assert all("relu." in text and "is not symmetric in int8" in text for text in check_tensorrt(model))
    assert len(check_tensorrt(model)) == 2


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive(scale: float) -> None:
    model = copy(RESNET)
    replace_constant(model, "x.scale", np.array(scale, np.float32))
    assert check_tensorrt(model)[0] == "QuantizeLinear x.codes has a scale that is not constant and positive"


def test_scales_of_channels_of_an_activation() -> None:
    model = copy(RESNET)
    replace_constant(model, "x.scale", np.ones(3, np.float32))
    assert check_tensorrt(model)[0] == "QuantizeLinear x.codes has a scale for each channel of an activation"


def test_one_scale_of_a_weight() -> None:
    model = copy(RESNET)
    replace_constant(model, "bn1.weight.scale", np.array(0.5, np.float32))
    wanted = "DequantizeLinear bn1.weight does not have int8 codes with a scale for each output channel"
    assert check_tensorrt(model) == [wanted]


def test_codes_of_a_weight_in_another_type() -> None:
    model = copy(RESNET)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "bn1.weight.codes")
    replace_constant(model, "bn1.weight.codes", numpy_helper.to_array(tensor).astype(np.uint8))
    assert len(check_tensorrt(model)) == 1


def test_a_float_input_of_a_quantized_layer() -> None:
    model = copy(RESNET)
    node(model, "bn1").input[0] = "input"
    assert check_tensorrt(model) == ["Conv bn1 has a quantized weight and a float input"]


def test_a_quantized_bias() -> None:
    model = copy(RESNET)
    layer = node(model, "bn1")
    layer.input[2] = node(model, "bn1.weight").output[0]
    assert check_tensorrt(model) == ["Conv bn1 has a bias that is not a constant in float"]


def test_the_output_of_a_layer_quantized_before_its_relu() -> None:
    model = copy(RESNET)
    quantize(model, "bn1", "relu")
    assert set(check_tensorrt(model)) == {
        "the output of Conv bn1 is quantized before its activation",
        "Relu relu reads codes; it has to compute in float",
    }


def test_the_output_of_a_layer_quantized_before_its_silu() -> None:
    model = copy(YOLO)
    quantize(model, "model_0_bn", "model_0_act")
    found = check_tensorrt(model)
    assert "the output of Conv model_0_bn is quantized before its activation" in found
    assert "Sigmoid model_0_act.gate reads codes; it has to compute in float" in found


def test_both_inputs_of_a_sum_quantized() -> None:
    model = copy(RESNET)
    quantize(model, "layer1_0_bn2", "relu")
    assert check_tensorrt(model) == ["both inputs of Add add are quantized, so no convolution can take it in"]


def test_no_input_of_a_sum_quantized() -> None:
    model = copy(RESNET)
    total = node(model, "add")
    total.input[1] = "relu"
    assert check_tensorrt(model) == ["no input of Add add is quantized"]


def test_a_join_with_another_scale() -> None:
    model = copy(YOLO)
    quantized = next(n for n in model.graph.node if n.op_type == "Concat" and n.name == "cat")
    source = node(model, quantized.input[0])
    other = helper.make_tensor("other.scale", TensorProto.FLOAT, [], [0.77])
    model.graph.initializer.append(other)
    source.input[1] = "other.scale"
    assert "Concat cat has codes of several scales" in check_tensorrt(model)


def test_a_join_with_an_input_in_float() -> None:
    model = copy(YOLO)
    join = node(model, "cat")
    source = node(model, join.input[1])  # DequantizeLinear, whose codes come from the value in float
    join.input[1] = node(model, source.input[0]).input[0]
    assert check_tensorrt(model) == ["Concat cat has codes on one side only"]


def test_a_pooling_whose_output_is_in_float() -> None:
    model = copy(YOLO)
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    codes = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == pool.output[0])
    for reader in model.graph.node:
        reader.input[:] = [pool.output[0] if name == f"{pool.name}.dequantized" else name for name in reader.input]
    model.graph.node.remove(codes)
    found = check_tensorrt(model)
    assert f"MaxPool {pool.name} has codes on one side only" in found


def test_the_model_is_not_modified() -> None:
    before = RESNET.SerializeToString()
    check_tensorrt(RESNET)
    assert RESNET.SerializeToString() == before
    onnx.checker.check_model(RESNET, full_check=True)
