"""Sampling of live requests, to capture images for calibration or to measure drift from it. Off by default.

Each request is chosen here, so that a reload of the config applies from the next request on. The sampling directive is
sent with the request, and the generation, which has the decoded image, carries it out after the reply.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.config.sections import ModelConfig
from service.storage.capture_ring import Ring
from service.storage.retention import ring_of


@dataclass(frozen=True)
class Sampling:
    """How requests of one model are sampled.

    Attributes:
        capture_share: Share of the requests of which an image is kept.
        drift_share: Share of the requests that are compared with the calibration images.
        ring: Where images are kept, and how many.
    """

    capture_share: float = 0.0
    drift_share: float = 0.0
    ring: Ring | None = None

    def choose(self, draw: Callable[[], float] = random.random) -> Mapping[str, Any] | None:
        """Return the sampling directive of the next request as JSON types; None if it is not sampled.

        Args:
            draw: Returns a random number from 0 to 1, 1 excluded.
        """
        capture = self.ring if self.capture_share and draw() < self.capture_share else None
        drift = bool(self.drift_share) and draw() < self.drift_share
        if capture is None and not drift:
            return None
        return {"capture": None if capture is None else capture.to_dict(), "drift": drift}


def sampling_of(model: ModelConfig, folder: Path) -> Sampling:
    """Return the sampling of a configured model, which captures images to `folder`."""
    return Sampling(model.capture.share, model.drift.share, ring_of(model, folder))
