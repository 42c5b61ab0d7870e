"""Reject a network that computes nonsense before it is quantized: its quantized form would agree with it."""

from __future__ import annotations

import logging

import torch

from edged.calibration.dataset import ImageCache
from edged.device import CPU, exact_float32
from edged.errors import GateError
from edged.evaluation.classification import predict
from edged.evaluation.gates import ROUNDING, Gates, at_chance, constant_outputs
from edged.evaluation.variation import Variation
from edged.memory import give_back_free_memory
from edged.models.loading import LoadedNetwork
from edged.models.magnitudes import implausible_value
from edged.pipeline.evaluation import images_differ
from edged.pipeline.readings import choose_reading, find_chance

log = logging.getLogger(__name__)

IMAGES = 8
_BATCH_PIXELS = 2 * 224**2


def sound_network(network: LoadedNetwork, cache: ImageCache, gates: Gates, device: torch.device = CPU) -> LoadedNetwork:
    """Choose between the readings of a network with labeled images, and check that the network is no nonsense.

    Args:
        network: Network as it was loaded. Its numbers are not modified.
        cache: Decoded images.
        gates: Which checks reject the network. A top-1 at chance is logged as a warning otherwise.
        device: Device to compute on.

    Returns:
        What `choose_reading` returns.

    Raises:
        ArchitectureError: The best of several readings is right as often as chance.
        GateError: The outputs are not finite, or a gate is not passed: a weight is absurd, the outputs are the same for
            all images, or top-1 is at chance.
    """
    absurd = implausible_value(network.model.state_dict())
    if absurd is not None and gates.plausible_weights:
        raise GateError(
            f"{absurd}; no training leaves such weights, flipped bits do: copy the file again, with a .sha256 next to"
            " it, or set gates.plausible_weights: false"
        )
    _check_outputs(network, cache, gates, absurd, device)
    chosen = choose_reading(network, cache, device)
    finding = find_chance(chosen, cache, device)
    if finding is not None and gates.above_chance:
        raise at_chance(finding)
    if finding is not None:
        log.warning("%s", finding)
    return chosen


def _check_outputs(
    network: LoadedNetwork, cache: ImageCache, gates: Gates, absurd: str | None, device: torch.device
) -> None:
    some = cache.calibration[:: max(1, len(cache.calibration) // IMAGES)][:IMAGES]
    batch = max(1, min(IMAGES, _BATCH_PIXELS // cache.input.size**2))
    variation = Variation()
    model = network.model.to(device)
    for start in range(0, len(some), batch):
        part = some[start : start + batch]
        with exact_float32(device):
            outputs = predict(model, cache, part, batch)
        if not bool(outputs.isfinite().all()):
            because = "" if absurd is None else f" ({absurd})"
            raise GateError(
                f"the network's outputs in full precision hold NaN or infinity{because}; its training diverged or its"
                " file has flipped bits: drop an earlier checkpoint or copy the file again"
            )
        variation.add(outputs)
        del outputs
    network.model.to(CPU)
    give_back_free_memory()
    found = variation.relative
    if gates.varied_outputs and found is not None and found <= ROUNDING and images_differ(cache, some):
        raise constant_outputs("full-precision", found, len(some))
