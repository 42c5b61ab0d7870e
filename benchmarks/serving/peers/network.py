"""The network that the other servers serve in benchmarks.serving: that of an artifact of edged, in torch, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 10


class Network:
    """A function from images to logits.

    Args:
        artifact: Folder of an artifact; "" for a network that computes nothing.
    """

    def __init__(self, artifact: str) -> None:
        self._network: Any = None
        if artifact:
            import torch

            from edged.artifacts.reader import read_artifact

            network = read_artifact(Path(artifact)).load_model()
            self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 [n, classes] of images float32 [n, channels, size, size]."""
        if self._network is None:
            return np.zeros((len(images), CLASSES), np.float32)
        import torch

        with torch.inference_mode():
            read = torch.from_numpy(np.array(images)).contiguous(memory_format=torch.channels_last)
            logits: np.ndarray = self._network(read).numpy()
            return logits
