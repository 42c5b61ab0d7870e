"""Put on PYTHONPATH of a daemon, this turns its workers into ones that a checkpoint has taken over.

Python imports `sitecustomize` by itself. A worker imports `service.worker.pipeline` when it is about to read its file,
and finds benchmarks/takeover/pipeline.py in its place. Nothing else changes, in the worker or in the daemon.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_TAKEN_OVER = "service.worker.pipeline"


class TakingOver:
    """A finder that gives a module of this folder for the one that reads checkpoints."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module in the place of service.worker.pipeline, and None for any other."""
        if name != _TAKEN_OVER:
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("pipeline.py"))


sys.meta_path.insert(0, TakingOver)
