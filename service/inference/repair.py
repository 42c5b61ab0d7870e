"""Repair of an artifact whose ONNX model is damaged: it follows from the codes, which have a digest of their own."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edged.artifacts.engines import DamagedModelError

T = TypeVar("T")

log = logging.getLogger(__name__)

_TIMEOUT_S = 120.0


def with_repair(directory: Path, load: Callable[[], T]) -> T:
    """Return the result of `load`; if the ONNX model is damaged, write it again from the codes and load once more.

    Args:
        directory: Folder of the artifact.
        load: Loads the artifact.

    Raises:
        DamagedModelError: The model is damaged, and this machine cannot make the same one again.
    """
    try:
        return load()
    except DamagedModelError as error:
        reason = _repair(directory)
        if reason is not None:
            remedy = f"quantize the checkpoint again, because it cannot be written again from the codes: {reason}"
            raise DamagedModelError(error.damage, remedy) from error
        log.warning("%s; it was written again from the codes, and is what was judged", error.damage)
    return load()


def _repair(directory: Path) -> str | None:
    """Write the model again in a process of its own, and return why that is not possible."""
    if missing := [name for name in ("torch", "onnx") if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    command = [sys.executable, "-m", "edged.pipeline.rebuild", str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603 - fixed
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
