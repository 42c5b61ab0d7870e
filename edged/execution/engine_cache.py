"""Compiled engines in a folder. They are caches: any of them may be lost, and is made anew when its model is loaded.

    <folder>/<16 digits of the ONNX model's sha256>-<engine>-<16 digits of the key>

A file is the SHA-256 of the rest, then the rest. The key covers everything that makes a compiled engine stale: the
model, the engine with its version and options, and the processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edged.atomic import make_folder, temporary_sibling

log = logging.getLogger(__name__)

TIMINGS = "timing.cache"  # what TensorRT has measured, see edged.execution.tensorrt_engine
_LAYOUT = 1  # of the files
_DIGITS = 16
_DIGEST_BYTES = 32
_DRIVERS = ("/proc/driver/nvidia/version", "/etc/nv_tegra_release")
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU implementer")
_PROCESSOR_OF_ARM = ("CPU architecture", "CPU variant", "CPU part", "CPU revision")


class EngineCache:
    """Compiled engines of one ONNX model.

    Args:
        folder: Folder for them; made when the first is stored.
        model: SHA-256 of the model in hex.
        processor: What identifies the processor; None for this one.
    """

    def __init__(self, folder: Path, model: str, processor: str | None = None) -> None:
        self._folder, self._model = folder, model
        self._processor = this_processor() if processor is None else processor

    def path(self, engine: str, facts: Mapping[str, Any]) -> Path:
        """Return the path of a compiled engine.

        Args:
            engine: Name of the engine.
            facts: Its version, its options and whatever else makes the compiled engine stale, as JSON types.
        """
        key = {"layout": _LAYOUT, "model": self._model, "processor": self._processor, "engine": engine, **facts}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{model_digits(self._model)}-{engine}-{digest[:_DIGITS]}"


def model_digits(sha256: str) -> str:
    """Return the start of the names of a model's compiled engines, without the hyphen that follows."""
    return sha256[:_DIGITS]


def load_engine(path: Path) -> bytes | None:
    """Return a compiled engine; None if there is none, or if it is damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("cannot read %s: %s; the model is compiled again", path, error.strerror)
        return None
    digest, engine = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(engine).digest() != digest:
        log.warning("%s is damaged; the model is compiled again", path)
        return None
    return engine


def store_engine(path: Path, engine: bytes) -> None:
    """Store a compiled engine. If that is not possible, the next start takes longer, and that is all.

    It is not synced to the disk, because a file that a crash has cut off is found by its digest.
    """
    temporary = temporary_sibling(path)
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(engine).digest())
            file.write(engine)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("cannot store %s: %s; the next start compiles the model again", path, error.strerror)


def this_processor() -> str:
    """Return what identifies the processor and its instructions."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    known = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in known.items()}
    named = [f"{name}: {values[name]}" for name in (*_PROCESSOR, *_PROCESSOR_OF_ARM) if name in values]
    return "; ".join([platform.machine(), *named])


def this_gpu() -> str:
    """Return what identifies NVIDIA's driver; on a Jetson that is the release of the whole system."""
    found = []
    for path in _DRIVERS:
        with contextlib.suppress(OSError):
            found.append(Path(path).read_text().strip())
    return "; ".join(found)
