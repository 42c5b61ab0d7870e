"""The fake TensorRT of this process and of its children, and models for it."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edged.execution.onnx_writer import TENSORRT_DIALECT
from edged.spec import Scheme
from tests.support.executions import executed, network

FAKE = Path(__file__).parent / "fake_tensorrt"


class FakeTensorRt:
    """A GPU with TensorRT and cuda-python that is not there, see `fake_tensorrt`.

    Args:
        monkeypatch: Undoes what is changed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        paths = [str(FAKE), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        monkeypatch.syspath_prepend(str(FAKE))
        self.use()

    def use(self, **settings: str) -> None:
        """Set the variables FAKE_... and import the modules anew: tensorrt, tensorrt_fails, gpu, gpu_memory."""
        for name in ("tensorrt", "tensorrt_fails", "gpu", "gpu_memory"):
            self._monkeypatch.delenv(f"FAKE_{name.upper()}", raising=False)
        for name, value in settings.items():
            self._monkeypatch.setenv(f"FAKE_{name.upper()}", value)
        self.forget()

    def forget(self) -> None:
        """Remove the modules from this process."""
        for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt", "cuda")]:
            self._monkeypatch.delitem(sys.modules, name)

    def hide(self, *names: str) -> None:
        """Make modules uninstalled in this process."""
        self.forget()
        for name in names:
            self._monkeypatch.setitem(sys.modules, name, None)


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
