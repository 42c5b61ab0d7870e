"""The memory that the C library keeps for reuse. Imports no torch."""

from __future__ import annotations

import ctypes

# Most memory that ONNX Runtime takes while it loads a network in float, relative to the network (measured: 3.5).
ENGINE_LOADING = 4


def trim_heap() -> None:
    """Return the memory that the C library keeps for reuse to the system, where possible.

    The C library keeps freed blocks between used ones. After many batches of changing size, or after an engine has
    loaded a model, these can exceed the memory in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
