"""What the other servers compute in benchmarks.serving: an artifact of edged in the engine that edged has for it.

Images are prepared for it by the functions that edged prepares them with, too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

CLASSES = 10
SIDE = 224  # of images that are prepared here, pixels


class Network:
    """A function from images to logits.

    Args:
        artifact: Folder of an artifact; "" for a network that computes nothing.
    """

    def __init__(self, artifact: str) -> None:
        self._executor = None
        if artifact:
            from edged.artifacts.engines import engine_of, open_executor
            from edged.artifacts.reader import read_artifact
            from service.system.processes import cores

            read = read_artifact(Path(artifact))
            self._executor = open_executor(read, engine_of(read, "auto"), cores())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 [n, classes] of images float32 [n, channels, size, size]."""
        if self._executor is None:
            return np.zeros((len(images), CLASSES), np.float32)
        return self._executor.run(np.array(images))


def prepare(name: str, values: np.ndarray) -> np.ndarray:
    """Prepare images as edged does for its inputs of the same names.

    Args:
        name: "input", "pixels" or "image".
        values: float32 or uint8 [n, channels, size, size], or the bytes of a file [n].

    Returns:
        Images float32 [n, channels, size, size].
    """
    from edged.calibration.images import decode, normalize
    from edged.spec import InputSpec

    spec = InputSpec(SIDE, SIDE)
    if name == "image":
        return normalize(np.stack([decode(file, spec).pixels for file in values.ravel()]), spec)
    return normalize(values, spec) if name == "pixels" else values
