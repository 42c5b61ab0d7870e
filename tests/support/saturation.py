"""The model of the probe for saturation, and processors that emulators pretend to be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, ROWS, SIDE = 64, 16, 4
CODE = 200  # of exact sums; half of each product that saturates is lost


def probe_model() -> onnx.ModelProto:
    """Return a 1x1 convolution that multiplies codes of 255 by weights of 127, and returns a code of 200."""
    constants: dict[str, npt.NDArray[np.generic]] = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "w": np.full((ROWS, CHANNELS, 1, 1), 127, np.int8),
        "w.scale": np.ones(ROWS, np.float32),
        "w.zero": np.zeros(ROWS, np.int8),
        "y.scale": np.array(CHANNELS * 255 * 127 / CODE, np.float32),
    }
    grid, out = ["one", "zero"], ["y.scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["input", *grid], ["a"]),
        helper.make_node("DequantizeLinear", ["a", *grid], ["b"]),
        helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["v"], axis=0),
        helper.make_node("Conv", ["b", "v"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", *out], ["c"]),
        helper.make_node("DequantizeLinear", ["c", *out], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, ROWS, SIDE, SIDE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="edged")
