"""Models for the fake TensorRT, and what it built of them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from edged.execution.onnx_writer import TENSORRT_DIALECT
from edged.spec import Scheme
from tests.support.executions import executed, network


def header_of(plan: Path) -> dict[str, Any]:
    """Return how the fake TensorRT built a plan."""
    data = plan.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[4:8], "little")])
    return header


@functools.cache
def integer_model(batch: int | None = None) -> bytes:
    """Return a small integer network in TensorRT's dialect; codes of 4 bits saturate on no processor."""
    done = executed("option A", 4, Scheme.SYMMETRIC).for_tensorrt()
    data: bytes = done.onnx(batch=batch, dialect=TENSORRT_DIALECT).SerializeToString()
    return data


@functools.cache
def asymmetric_model() -> bytes:
    """Return a small integer network as CPU engines read it."""
    data: bytes = executed("option A", 4).onnx().SerializeToString()
    return data


@functools.cache
def float_model() -> bytes:
    """Return a small network in float."""
    from edged.execution.build import build_graph
    from edged.execution.onnx_writer import write_onnx
    from edged.execution.placement import place_nothing

    data: bytes = write_onnx(
        place_nothing(build_graph(network("option A"), {})), {}, 32, "result", (7,), batch=1
    ).SerializeToString()
    return data
