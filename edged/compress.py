"""Model, calibration images and QuantSpec in; quantized model and one report per layer out."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.batchnorm import reestimate_batchnorm
from edged.calibration.collect import collect_grams
from edged.calibration.dataset import ImageCache
from edged.calibration.gram import Gram, QuantizableLayer, hessian
from edged.errors import ArchitectureError
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import fidelity
from edged.models.layers import quantizable_layers
from edged.observer import Observer, SilentObserver
from edged.quant.grid import QuantizedWeight
from edged.quant.layer import quantize_layer
from edged.spec import QuantSpec


@dataclass(frozen=True)
class LayerReport:
    """What was done to one layer; see `LayerResult` for the figures."""

    name: str
    kind: str
    rows: int
    columns: int
    bits: int
    loss: float
    relative_loss: float
    order: str
    damp_ratio: float
    retries: int
    dead_inputs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Compressed:
    """A quantized model.

    Attributes:
        model: Runs with the decoded weights; eval mode.
        quantized: Codes by parameter name, such as "conv1.weight".
        rest: All other entries of the state dict.
        layers: A report for each quantized layer, in network order.
        bn_reestimated: Whether new BatchNorm statistics were accepted.
        reference_logits: Full-precision outputs on the held-out images.
        logits: Outputs of `model` on the held-out images.
        plan: How the work was divided.
    """

    model: nn.Module
    quantized: dict[str, QuantizedWeight]
    rest: dict[str, Tensor]
    layers: list[LayerReport]
    bn_reestimated: bool
    reference_logits: Tensor
    logits: Tensor
    plan: dict[str, Any]


def compress(
    model: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    *,
    batch_size: int = 32,
    observer: Observer | None = None,
) -> Compressed:
    """Quantize all convolutions and linear layers of `model`.

    Args:
        model: Full precision, eval mode. Not modified.
        cache: Calibration and held-out images.
        spec: How to quantize.
        batch_size: Images per forward pass; changes speed and memory only.
        observer: Told of the stages "hessian", "solve" and "batchnorm".

    Raises:
        ArchitectureError: The model has no layer to quantize.
        CalibrationError: A layer's Hessian cannot be used.
    """
    watcher: Observer = observer or SilentObserver()
    torch.manual_seed(spec.seed)
    full = model.to(memory_format=torch.channels_last)
    layers = quantizable_layers(full)
    if not layers:
        raise ArchitectureError("the model has no convolution or linear layer to quantize")
    with watcher.stage("hessian"):
        reference = predict(full, cache, cache.held_out, batch_size=batch_size)
        grams = collect_grams(full, layers, _watched(cache, cache.calibration, batch_size, watcher))
    served = copy.deepcopy(full)
    with watcher.stage("solve"):
        quantized, reports = _solve(served, grams, spec, watcher)
    logits = predict(served, cache, cache.held_out, batch_size=batch_size)
    accepted = False
    if spec.bn_reestimation:
        with watcher.stage("batchnorm"):
            served, logits, accepted = _try_batchnorm(served, cache, batch_size, reference, logits)
    rest = {name: value for name, value in served.state_dict().items() if name not in quantized}
    return Compressed(served, quantized, rest, reports, accepted, reference, logits, {"batch_size": batch_size})


def _solve(
    model: nn.Module, grams: dict[str, Gram], spec: QuantSpec, observer: Observer
) -> tuple[dict[str, QuantizedWeight], list[LayerReport]]:
    """Quantize the layers of `model` in place."""
    quantized: dict[str, QuantizedWeight] = {}
    reports: list[LayerReport] = []
    layers = quantizable_layers(model)
    for done, (name, layer) in enumerate(layers.items(), start=1):
        if name not in grams:
            raise ArchitectureError(f"layer {name} never ran on the calibration images; it cannot be quantized")
        result = quantize_layer(layer.weight, hessian(grams[name]), spec)
        with torch.no_grad():
            layer.weight.copy_(result.weight.decode())
        quantized[f"{name}.weight"] = result.weight
        reports.append(_report(name, layer, result.weight, spec, result))
        observer.progress(done, len(layers))
    return quantized, reports


def _report(name: str, layer: QuantizableLayer, weight: QuantizedWeight, spec: QuantSpec, result: Any) -> LayerReport:
    return LayerReport(
        name=name,
        kind=type(layer).__name__,
        rows=weight.codes.shape[0],
        columns=weight.codes.shape[1],
        bits=weight.bits,
        loss=result.loss,
        relative_loss=result.relative_loss,
        order=spec.order.value,
        damp_ratio=result.damp_ratio,
        retries=result.retries,
        dead_inputs=result.dead_inputs,
    )


def _try_batchnorm(
    model: nn.Module, cache: ImageCache, batch_size: int, reference: Tensor, logits: Tensor
) -> tuple[nn.Module, Tensor, bool]:
    """New BatchNorm statistics, kept only when the held-out outputs come closer to `reference`."""
    candidate = copy.deepcopy(model)
    if not reestimate_batchnorm(candidate, cache.batches(cache.calibration, batch_size)):
        return model, logits, False
    changed = predict(candidate, cache, cache.held_out, batch_size=batch_size)
    if fidelity(reference, changed).relative_error < fidelity(reference, logits).relative_error:
        return candidate, changed, True
    return model, logits, False


def _watched(cache: ImageCache, indices: Tensor, batch_size: int, observer: Observer) -> Any:
    done = 0
    for batch in cache.batches(indices, batch_size):
        yield batch.to(memory_format=torch.channels_last)
        done += len(batch)
        observer.progress(done, len(indices))
