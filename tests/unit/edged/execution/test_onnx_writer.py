from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edged.errors import ArtifactError
from edged.execution.graph import Conv
from edged.execution.onnx_writer import OPENVINO_DIALECT, write_onnx
from edged.execution.placement import place_nothing
from edged.execution.simulator import run_float
from edged.spec import Scheme
from tests.support.executions import (
    NETWORKS,
    Execution,
    executed,
    execution,
    network,
    operations,
    relative_error,
    run,
    session,
)

KINDS = ("option A", "yolov5")


def initializers(model: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


def stored_codes(model: onnx.ModelProto, name: str, zeros: np.ndarray) -> np.ndarray:
    """Read the codes of a layer back: less their zero points if they are signed, as they are otherwise."""
    tensor = initializers(model)[f"{name}.weight.codes"]
    codes = numpy_helper.to_array(tensor).astype(np.int64)
    if tensor.data_type in (TensorProto.INT4, TensorProto.INT8):
        codes = codes + zeros.reshape(-1, *(1,) * (codes.ndim - 1))
    return codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7])
def test_codes_are_kept_bit_for_bit(kind: str, scheme: Scheme, bits: int) -> None:
    done = executed(kind, bits, scheme)
    model = checked(done.onnx())
    seen = set()
    for node in done.placement.graph.weighted():
        if node.weight.parameter:
            quantized = done.quantized[node.weight.parameter]
            wanted = next(n for n in done.placement.graph.weighted() if n.name == node.name).weight.quantized
            assert wanted is not None
            assert torch.equal(wanted.codes, quantized.codes)
            codes = stored_codes(model, node.name, quantized.zero_point.numpy().astype(np.int64))
            assert np.array_equal(codes.reshape(quantized.codes.shape), quantized.codes.numpy())
            seen.add(node.weight.parameter)
    assert seen == done.quantized.keys()


def test_codes_of_4_bits_and_fewer_are_packed() -> None:
    sizes = {bits: len(executed("option A", bits, Scheme.SYMMETRIC).onnx().SerializeToString()) for bits in (4, 7)}
    parameters = 270_000
    assert sizes[7] - sizes[4] == pytest.approx(parameters / 2, rel=0.05)
    done = executed("option A", 4, Scheme.SYMMETRIC)
    kinds = {tensor.data_type for name, tensor in initializers(done.onnx()).items() if name.endswith("weight.codes")}
    assert kinds == {TensorProto.INT4, TensorProto.UINT4}  # the shortcuts of option A are asymmetric


def test_symmetric_codes_of_8_bits_are_stored_less_128() -> None:
    done = executed("option A", 8, Scheme.SYMMETRIC)
    tensor = initializers(done.onnx())["bn1.weight.codes"]
    assert tensor.data_type == TensorProto.INT8
    codes = done.quantized["conv1.weight"].codes.numpy().astype(np.int64) - 128
    assert np.array_equal(numpy_helper.to_array(tensor).reshape(codes.shape), codes)


def test_asymmetric_codes_of_8_bits_are_refused() -> None:
    done = executed("option A", 8, Scheme.ASYMMETRIC)
    with pytest.raises(ArtifactError, match="quantize with a symmetric scheme or 7 bits"):
        done.onnx()


def test_a_layer_without_codes_is_refused() -> None:
    done = execution(network("option A"))
    layer = next(done.placement.graph.weighted())
    assert isinstance(layer, Conv)
    object.__setattr__(layer.weight, "quantized", None)
    with pytest.raises(ArtifactError, match=r"'conv1\.weight' has no codes; let its layer compute in float"):
        done.onnx()


@pytest.mark.parametrize("bits", [4, 7])
def test_operations_of_a_resnet18(tmp_path: Path, bits: int) -> None:
    found = operations(executed("resnet18", bits).onnx(batch=1), tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (20, 8, 1)
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] <= 1
    assert (found["SpaceToDepth"], found["Transpose"]) == (1, 2)  # to channels last, and back before the pooling
    assert not {"Conv", "Gemm", "Add", "Relu", "Cast", "Sub", "Mul", "Pad"} & found.keys()


@pytest.mark.parametrize("name", ["option A", "option B"])
def test_operations_of_a_resnet20(tmp_path: Path, name: str) -> None:
    """19 convolutions and two shortcuts, which are convolutions in option A, too."""
    found = operations(executed(name).onnx(), tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (21, 9, 1)
    assert (found["QuantizeLinear"], found["QLinearGlobalAveragePool"]) == (1, 1)
    assert found["DequantizeLinear"] <= 1


def test_operations_of_a_detector(tmp_path: Path) -> None:
    """Its output layers have float outputs: one reads codes, the other a value that nothing else reads as codes."""
    found = operations(executed("yolov5").onnx(), tmp_path)
    assert (found["QLinearConv"], found["QGemm"], found["Conv"]) == (16, 1, 1)
    assert (found["QLinearSigmoid"], found["QLinearMul"] + found["Mul"]) == (16, 16)
    assert found["QuantizeLinear"] == 1


def test_operations_of_a_detector_with_silu_in_float(tmp_path: Path) -> None:
    """Its convolutions stay on integers, and no transposition is left around a SiLU."""
    done = executed("yolov5").with_float_silu()
    found = operations(checked(done.onnx()), tmp_path)
    assert (found["QLinearConv"], found["QuickGelu"]) == (16, 16)
    assert found["DequantizeLinear"] == 16
    assert found["QuantizeLinear"] == 1 + 16 - 1  # of the input, and of all but the last one, which is read as floats
    assert found["Transpose"] == executed_transposes(tmp_path)
    assert not {"Sigmoid", "Mul", "QLinearSigmoid", "QLinearMul"} & found.keys()


def executed_transposes(folder: Path) -> int:
    return operations(executed("yolov5").onnx(), folder)["Transpose"]


def test_silu_in_float_without_operations_of_one_engine() -> None:
    done = executed("yolov5").with_float_silu()
    plain = checked(done.onnx(dialect=OPENVINO_DIALECT))
    assert {entry.domain for entry in plain.opset_import} == {""}
    assert {entry.domain for entry in done.onnx().opset_import} == {"", "com.microsoft"}
    assert relative_error(run(plain, done.images), run(done.onnx(), done.images)) < 1e-6


@pytest.mark.parametrize("bits", [4, 7])
@pytest.mark.parametrize("name", ["resnet18", "yolov5", "focus"])
def test_rearranged_layers_compute_the_same(name: str, bits: int) -> None:
    done = executed(name, bits)
    written = done.onnx()
    assert "SpaceToDepth" in {node.op_type for node in written.graph.node}
    plain = done.onnx(dialect=OPENVINO_DIALECT)
    assert "SpaceToDepth" not in {node.op_type for node in plain.graph.node}
    found, wanted = run(checked(written), done.images), run(checked(plain), done.images)
    assert relative_error(found, wanted) < 1e-6  # the biases of a detector's output layers are rounded


def test_grids_of_activations_are_scalars() -> None:
    """With vectors of one, ONNX Runtime fuses no additions."""
    tensors = initializers(executed("yolov5").onnx())
    grids = [tensor for name, tensor in tensors.items() if name.endswith((".scale", ".zero_point"))]
    assert [
        tensor.name for tensor in grids if tensor.dims and "weight" not in tensor.name and "bias" not in tensor.name
    ] == []


@pytest.mark.parametrize(("bits", "scheme"), [(3, Scheme.ASYMMETRIC), (4, Scheme.SYMMETRIC), (8, Scheme.ASYMMETRIC)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_float_keeps_its_codes_and_computes_the_same(kind: str, bits: int, scheme: Scheme) -> None:
    done = executed(kind, bits, scheme)
    placement = place_nothing(done.placement.graph)
    with torch.inference_mode():
        wanted = done.network(done.images)
    model = checked(write_onnx(placement, {}, 32, "result", tuple(wanted.shape[1:]), batch=4))
    assert relative_error(run(model, done.images), wanted) < 1e-8
    kinds = {t.data_type for name, t in initializers(model).items() if name.endswith("weight.codes")}
    assert (TensorProto.UINT8 in kinds) == (bits > 4)
    assert kinds <= {TensorProto.UINT8, TensorProto.UINT4}  # the shortcuts of option A have 2 bits


@pytest.mark.parametrize("float_weights", [False, True])
def test_every_operation_computes_in_onnx_as_in_torch(float_weights: bool) -> None:
    for name in (
        "head of fastai",
        "focus",
        "corrected logits",
        *(name for name in NETWORKS if name.startswith("head with")),
    ):
        done = execution(network(name))
        placement = place_nothing(done.placement.graph)
        if float_weights:
            for node in placement.graph.weighted():
                object.__setattr__(node.weight, "quantized", None)
        wanted = run_float(placement.graph, done.images)
        model = checked(write_onnx(placement, {}, 32, "result", tuple(wanted.shape[1:]), batch=None))
        assert relative_error(run(model, done.images), wanted) < 1e-8


def check_batches(done: Execution) -> None:
    fixed, free = session(checked(done.onnx(batch=1))), session(checked(done.onnx(batch=None)))
    assert fixed.get_inputs()[0].shape == [1, 3, 32, 32]
    assert free.get_inputs()[0].shape == ["batch", 3, 32, 32]
    assert fixed.get_outputs()[0].name == "result"
    together = free.run(None, {"input": done.images.numpy()})[0]
    for index, image in enumerate(done.images):
        (alone,) = fixed.run(None, {"input": image[None].numpy()})
        assert np.allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_of_one_image_or_of_any_number(kind: str) -> None:
    check_batches(executed(kind))


def test_metadata_is_written() -> None:
    done = executed("option A")
    model = write_onnx(done.placement, done.grids, 32, "logits", (7,), metadata={"names": "{0: 'cat'}", "stride": "8"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {"names": "{0: 'cat'}", "stride": "8"}


def test_the_input_has_the_channels_of_the_network() -> None:
    model = executed("option B").onnx(batch=2)
    assert session(checked(model)).get_inputs()[0].shape == [2, 1, 32, 32]


@pytest.mark.parametrize("bits", [4, 7])
def test_a_layer_kept_in_float_keeps_its_codes_and_its_neighbors_stay_integer(tmp_path: Path, bits: int) -> None:
    """The layer before it has float outputs; all others are fused as if it were not there."""
    done = executed("resnet18", bits).keeping(["layer2.0.conv2"])
    model = checked(done.onnx(batch=1))
    quantized = done.quantized["layer2.0.conv2.weight"]
    codes = stored_codes(model, "layer2_0_bn2", quantized.zero_point.numpy().astype(np.int64))
    assert np.array_equal(codes.reshape(quantized.codes.shape), quantized.codes.numpy())
    found = operations(model, tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (18, 8, 1)
    assert sum(count for kind, count in found.items() if kind in ("Conv", "FusedConv")) == 2
    assert not {"Cast", "Sub"} & found.keys()  # weights are unpacked once
