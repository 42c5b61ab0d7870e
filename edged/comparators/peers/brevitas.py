"""Brevitas' GPTQ and Qronos, used as in its own examples, on the same network and images as edged.

Only weights are quantized, per channel, every convolution and linear layer at the same width; BatchNorm stays as
trained. Requires the extra `bench` (pip install 'edged[bench]').
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.models.layers import quantizable_layers
from edged.models.torchvision_shim import import_torchvision

PEERS = ("brevitas-gptq", "brevitas-qronos")
# Kinds of scale, all found by Brevitas' least-squares search over 20 fractions of the range.
SCALES = ("symmetric", "narrow", "asymmetric")
DEFAULT_SCALE = "asymmetric"


def is_installed() -> bool:
    """Return whether Brevitas is installed."""
    return importlib.util.find_spec("brevitas") is not None


def prepare() -> None:
    """Import all modules that will be used, so that their time and memory are not measured."""
    import_torchvision()  # Brevitas imports it and fails if its compiled operators do not load
    for module in ("gptq", "qronos", "gpfq", "quantize"):
        importlib.import_module(f"brevitas.graph.{module}")
    for module in ("nn", "quant.scaled_int", "quant.shifted_scaled_int"):
        importlib.import_module(f"brevitas.{module}")


def quantize_with_peer(
    model: nn.Module, cache: ImageCache, bits: int, peer: str, batch_size: int, scale: str = DEFAULT_SCALE
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Quantize a copy of `model` layer after layer, as `gptq_mode` and `gpfq_mode` document.

    Args:
        model: Full precision, eval mode. Not modified.
        cache: Images; the calibration images are used.
        bits: Bits per weight.
        peer: One of PEERS; both with act_order.
        batch_size: Images per step.
        scale: One of SCALES.

    Returns:
        The quantized network and its decoded weights by layer name.
    """
    from brevitas.graph.quantize import layerwise_quantize

    # Brevitas writes through weight.flatten(1), which is a copy in channels-last layout: its results would be lost.
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    quantized = layerwise_quantize(plain, _layer_map(bits, scale))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UserWarning)  # about named tensors and other internals
        quantized(cache.batch(cache.calibration[:2]))  # finds the scales
        with _mode(quantized, peer) as mode:
            for _ in range(mode.num_layers):
                for batch in cache.batches(cache.calibration, batch_size):
                    mode.model(batch)
                mode.update()
        # Decoded weights go into a plain copy, because serving does not search for them at every step.
        served = copy.deepcopy(model)
        decoded = {name: layer.quant_weight().value.clone() for name, layer in _layers(quantized).items()}
        for name, layer in quantizable_layers(served).items():
            layer.weight = nn.Parameter(decoded[name], requires_grad=False)
    return served, decoded


def _mode(model: nn.Module, peer: str) -> Any:
    if peer == "brevitas-gptq":
        from brevitas.graph.gptq import gptq_mode

        return gptq_mode(model, use_quant_activations=False, act_order=True)
    from brevitas.graph.gpfq import gpfq_mode
    from brevitas.graph.qronos import Qronos

    return gpfq_mode(model, use_quant_activations=False, act_order=True, algorithm_impl=Qronos)


def _layers(model: nn.Module) -> dict[str, Any]:
    from brevitas import nn as qnn

    return {
        name: module for name, module in model.named_modules() if isinstance(module, qnn.QuantConv2d | qnn.QuantLinear)
    }


def _layer_map(bits: int, scale: str) -> dict[type[nn.Module], Any]:
    from brevitas import nn as qnn
    from brevitas.quant.scaled_int import Int8WeightPerChannelFloatMSE
    from brevitas.quant.shifted_scaled_int import ShiftedUint8WeightPerChannelFloatMSE

    options: dict[str, Any] = {"weight_bit_width": bits}
    if scale == "asymmetric":
        options |= {"weight_quant": ShiftedUint8WeightPerChannelFloatMSE}
    else:
        # By default, Brevitas does not use the lowest code, which leaves three values at 2 bits.
        options |= {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_narrow_range": scale == "narrow"}
    return {nn.Conv2d: (qnn.QuantConv2d, options), nn.Linear: (qnn.QuantLinear, options)}
