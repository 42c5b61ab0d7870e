"""The fake TensorRT and cuda-python of a process and of its children, see `fake_tensorrt`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

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
            del sys.modules[name]

    def hide(self, *names: str) -> None:
        """Make modules uninstalled in this process."""
        self.forget()
        for name in names:
            self._monkeypatch.setitem(sys.modules, name, None)
