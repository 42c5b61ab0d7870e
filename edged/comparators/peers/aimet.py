"""AIMET's AdaRound (Qualcomm), used as in its own documentation, on the same network and images as edged.

Only weights are quantized, per channel and symmetric, all layers at the same width; AIMET's documentation names 4 bits
and more. AIMET returns weights that are still a little off the grid, and the grid in a file; whoever deploys them
rounds. Requires the package aimet-torch, which is no extra of edged: without a constraint, pip replaces torch for it.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.models.layers import quantizable_layers
from edged.models.torchvision_shim import import_torchvision

PEER = "aimet-adaround"
ITERATIONS = 15_000  # AIMET's own number of steps for each layer at fewer than 8 bits
_MODULE = "aimet_torch.adaround.adaround_weight"


def prepare() -> None:
    """Import all modules that will be used, so that their time and memory are not measured."""
    import_torchvision()  # AIMET imports it and fails if its compiled operators do not load
    importlib.import_module(_MODULE)


def quantize_with_peer(
    model: nn.Module, cache: ImageCache, bits: int, batch_size: int, iterations: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Learn the rounding of a copy of `model`, layer after layer.

    Args:
        model: Full precision, eval mode. Not modified.
        cache: Images; the calibration images are used.
        bits: Bits per weight.
        batch_size: Images per forward pass.
        iterations: Steps of each layer.

    Returns:
        The quantized network and its decoded weights by layer name.
    """
    adaround: Any = importlib.import_module(_MODULE)
    _pass_over_other_modules(model)
    logging.getLogger("Quant").setLevel(logging.WARNING)  # it writes a line for each layer
    batches = _Batches(cache, batch_size)
    parameters = adaround.AdaroundParameters(batches, len(batches), default_num_iterations=iterations)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory(prefix="edged-") as folder, warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about its own internals
        learned = adaround.Adaround.apply_adaround(
            plain, cache.batch(cache.calibration[:1]), parameters, folder, "peer", default_param_bw=bits
        )
        grids = json.loads((Path(folder) / "peer.encodings").read_text())["param_encodings"]
    decoded = {
        name: _rounded(layer.weight.detach(), grids[f"{name}.weight"])
        for name, layer in quantizable_layers(learned).items()
    }
    served = copy.deepcopy(model)
    for name, layer in quantizable_layers(served).items():
        layer.weight = nn.Parameter(decoded[name], requires_grad=False)
    return served, decoded


class _Batches:
    """The calibration images in batches, as often as AIMET asks for them.

    Args:
        cache: Images.
        batch_size: Images per batch.
    """

    def __init__(self, cache: ImageCache, batch_size: int) -> None:
        self._cache, self.batch_size = cache, batch_size

    def __len__(self) -> int:
        return -(-len(self._cache.calibration) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        return self._cache.batches(self._cache.calibration, self.batch_size)


def _rounded(weight: Tensor, grids: list[dict[str, Any]]) -> Tensor:
    """Round a weight [rows, ...] to nearest on the grid of each row."""
    shape = (-1, *[1] * (weight.dim() - 1))
    scale, low, high = (torch.tensor([grid[name] for grid in grids]).reshape(shape) for name in ("scale", "min", "max"))
    return ((weight / scale).round() * scale).maximum(low).minimum(high)


def _pass_over_other_modules(model: nn.Module) -> None:
    """Let AIMET skip modules of classes that it does not know; otherwise it refuses the network."""
    from aimet_torch.nn import QuantizationMixin

    for kind in {type(module) for module in model.modules() if not list(module.children())}:
        if not kind.__module__.startswith("torch."):
            QuantizationMixin.ignore(kind)
