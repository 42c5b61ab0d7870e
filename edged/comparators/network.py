"""Quantize a whole network with a comparator, unit after unit in order of execution."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from edged.comparators.adaquant import AdaQuant
from edged.comparators.adaround import AdaRound
from edged.comparators.bias_correction import BiasCorrection
from edged.comparators.bit_split import BitSplit
from edged.comparators.brecq import Brecq
from edged.comparators.inputs import Images, Stream, UnitInputs
from edged.comparators.method import Comparator, Options, Solution
from edged.comparators.nearest import Nearest
from edged.comparators.obq import Obq
from edged.comparators.requant import Requant
from edged.comparators.units import Unit, find_units
from edged.device import device_of, exact_float32
from edged.engine.activations import ActivationStore
from edged.engine.memory_plan import ACTIVATION_MEMORY
from edged.errors import UsageError
from edged.models.graph import Program
from edged.models.layers import shared_copy
from edged.progress import ProgressListener, SilentListener
from edged.quant.grid import QuantizedWeight
from edged.spelling import names_to_choose

COMPARATORS: Mapping[str, Comparator] = {
    "rtn": Nearest(),
    "bias-correction": BiasCorrection(),
    "adaquant": AdaQuant(),
    "adaround": AdaRound(),
    "bit-split": BitSplit(),
    "brecq": Brecq(),
    "obq": Obq(),
    "requant": Requant(),
}


@dataclass(frozen=True)
class ComparedNetwork:
    """A network that a comparator has quantized.

    Attributes:
        model: Network with decoded weights and corrected biases, in eval mode.
        quantized: Codes by parameter name, such as "conv1.weight".
    """

    model: nn.Module
    quantized: dict[str, QuantizedWeight]


def quantize_with(
    name: str,
    model: nn.Module,
    images: Images,
    options: Options,
    listener: ProgressListener | None = None,
    folder: Path | None = None,
) -> ComparedNetwork:
    """Quantize all convolutions and linear layers of a network with a comparator.

    Args:
        name: A key of COMPARATORS.
        model: Network in full precision and eval mode. Not modified.
        images: Returns the calibration images in batches on the network's device, the same ones at every call.
        options: Bits, grid, iterations and seed.
        listener: Receives the number of units that are done.
        folder: Folder for values of the images that do not fit the memory for them; None for that of temporary files.

    Raises:
        ArchitectureError: The model has no layer to quantize.
        UsageError: There is no such comparator.
    """
    if name not in COMPARATORS:
        raise UsageError(f"method has value {name!r}; {names_to_choose(name, COMPARATORS, 'choose one of')}")
    method, listener = COMPARATORS[name], listener or SilentListener()
    units = find_units(model, method.blockwise)
    network, quantized = shared_copy(model), {}
    program = Program(model)
    store = ActivationStore(ACTIVATION_MEMORY, folder or Path(tempfile.gettempdir()))
    streams = Stream("full", program, model, images, store), Stream("quantized", program, network, images, store)
    with store, exact_float32(device_of(model)), torch.no_grad():
        for done, unit in enumerate(units, start=1):
            inputs = UnitInputs(unit, model, network, images, *streams, store)
            solution = method.quantize(unit, inputs, options)
            inputs.release()
            for layer, weight in solution.weights.items():
                quantized[f"{layer}.weight"] = weight
            _install(network, unit, solution)
            listener.progress(done, len(units))
    return ComparedNetwork(network, quantized)


def _install(network: nn.Module, unit: Unit, solution: Solution) -> None:
    """Replace the weights of a unit in the network, and add the shifts of its outputs to what follows."""
    for name, weight in solution.weights.items():
        layer = network.get_submodule(name)
        layer.weight = nn.Parameter(weight.decode(), requires_grad=False)
    for name, shift in solution.shifts.items():
        if unit.norm_name:
            norm = network.get_submodule(unit.norm_name)
            assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101 - as in the network in full precision
            if norm.running_mean is not None:  # (y + shift) - mean = y - (mean - shift)
                norm.running_mean = norm.running_mean - shift
        else:
            layer = network.get_submodule(name)
            bias = shift if layer.bias is None else cast(Tensor, layer.bias) + shift
            layer.bias = nn.Parameter(bias, requires_grad=False)
