"""Time parsing of requests and writing of responses of the Open Inference Protocol, as JSON and as binary tensor data.

Everything runs in this process, without HTTP; results are medians. Usage: python -m benchmarks.protocol
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.options import parser_of
from edged.spec import InputSpec
from service.inference.requests import parse_request
from service.inference.responses import float_output, format_response
from service.ipc.messages import Body

SIDES = (224, 640)
PREDICTIONS, VALUES = 25200, 85  # raw outputs of a YOLOv5 at 640 pixels
REPEATS = 9


def main() -> None:
    """Print a line for each body."""
    parser_of(__doc__).parse_args()
    for side in SIDES:
        spec = InputSpec(side, side)
        values = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
        pixels = np.random.default_rng(0).integers(0, 256, values.shape, np.uint8)
        for label, body in (
            ("JSON", as_json(values)),
            ("binary FP32", as_binary("input", "FP32", values)),
            ("binary UINT8", as_binary("pixels", "UINT8", pixels)),
        ):
            seconds = median(lambda body=body, spec=spec: parse_request(body, spec))
            show(f"request of 1x3x{side}x{side}, {label}", len(body.content), seconds)
    raw = torch.randn(1, PREDICTIONS, VALUES, generator=torch.Generator().manual_seed(0))
    for label, binary in (("JSON", set[str]()), ("binary FP32", {"raw"})):
        size = len(format_response([float_output("raw", raw)], "model", "1", None, binary).content)
        seconds = median(lambda names=binary: format_response([float_output("raw", raw)], "model", "1", None, names))
        show(f"response of 1x{PREDICTIONS}x{VALUES}, {label}", size, seconds)


def as_json(values: npt.NDArray[np.float32]) -> Body:
    """Return a request with the numbers in the JSON."""
    tensor = {"name": "input", "datatype": "FP32", "shape": values.shape, "data": values.ravel().tolist()}
    return Body(json.dumps({"inputs": [tensor]}).encode())


def as_binary(name: str, datatype: str, values: npt.NDArray[np.generic]) -> Body:
    """Return a request with the numbers as bytes after the JSON."""
    tensor = {"name": name, "datatype": datatype, "shape": values.shape}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": values.nbytes}}]}).encode()
    return Body(header + values.tobytes(), len(header))


def median(call: Callable[[], object]) -> float:
    """Return the median seconds of a call."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def show(label: str, size: int, seconds: float) -> None:
    """Print one line."""
    print(f"{label:42} {size / 1e6:7.2f} MB {1000 * seconds:9.2f} ms")


if __name__ == "__main__":
    main()
