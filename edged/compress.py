"""Quantize a model with calibration images and a QuantSpec, and report on each layer."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.batchnorm import reestimate_batchnorm
from edged.calibration.dataset import ImageCache
from edged.device import CPU, device_of, exact_float32, moved, on_cpu
from edged.engine.activation_ranges import ActivationRanges
from edged.engine.cluster_affine import fit_cluster_affine
from edged.engine.layerwise import Quantized, quantize_network
from edged.engine.memory_plan import MemoryPlan, Resources
from edged.engine.statistics import CORRECTED
from edged.errors import ArchitectureError
from edged.evaluation.classification import predict
from edged.evaluation.fidelity import relative_errors, squared_error
from edged.execution.build import build_graph
from edged.execution.placement import head_parameters, place
from edged.execution.positive_scales import with_positive_scales
from edged.execution.quantization import ActivationQuantization
from edged.execution.rounded import RoundedNetwork
from edged.execution.selection import Policies, Ranges, choose_policies, first_policies
from edged.execution.simulator import run_rounded
from edged.memory import give_back_free_memory
from edged.models import cluster_affine
from edged.models.layers import quantizable_layers, shared_copy
from edged.progress import ProgressListener, SilentListener
from edged.quant.grid import QuantizedWeight
from edged.spec import ACTIVATION_BITS, AUTO, FLOAT, INTEGER, QuantSpec, Statistics

log = logging.getLogger(__name__)

# Held-out images that choose the statistics: choosing between two takes fewer images than reporting on one.
CHOICE_IMAGES = 32
# Pixels of the held-out images that choose the ranges of activations, which takes ten passes over them.
CHOICE_PIXELS = 32 * 224**2
CHOICE_BATCH = 4
SMALL_OUTPUTS = 16 << 20  # bytes of the outputs on all held-out images that may be kept


@dataclass(frozen=True)
class LayerReport:
    """Report on the quantization of one layer.

    Attributes:
        name: Module name.
        kind: Conv2d or Linear.
        rows: Output channels.
        columns: Weights per row.
        bits: Bits per code.
        loss: tr(Δ H Δ^T) / 2, in squared output units.
        relative_loss: The loss as a share of the output's own energy.
        order: Column order.
        damp_ratio: Damping in use after retries.
        retries: Tenfold increases of the damping.
        dead_inputs: Inputs that were zero in every calibration image.
        images: Calibration images that the layer saw.
    """

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
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Compressed:
    """A quantized model.

    Attributes:
        model: Network with the decoded weights, in eval mode.
        quantized: Codes by parameter name, such as "conv1.weight".
        rest: All other entries of the state dict.
        layers: A report for each quantized layer, in network order.
        bn_reestimated: Whether other BatchNorm statistics and biases than the trained ones were accepted.
        plan: Plan by which the work was divided to fit the memory.
        full: The network in full precision.
        cache: The images that were used.
        activations: Ranges of the activations; None if they were not quantized.
        corrected_share: Share of the held-out error that a transformation of the logits takes away; None without one.
        onnx: The network as an ONNX model; None if there is none.
        engine: The network as the engine that serves it computes it; None for torch.
        serves_floats: Whether it is served with activations in float although these have ranges.
        chosen_bits: How bits were chosen for each layer, as it stands in the report; None if they were given.
    """

    model: nn.Module
    quantized: dict[str, QuantizedWeight]
    rest: dict[str, Tensor]
    layers: list[LayerReport]
    bn_reestimated: bool
    plan: MemoryPlan
    full: nn.Module
    cache: ImageCache
    activations: ActivationQuantization | None = None
    corrected_share: float | None = None
    onnx: bytes | None = None
    engine: nn.Module | None = None
    serves_floats: bool = False
    chosen_bits: Mapping[str, Any] | None = None

    @property
    def served_activations(self) -> ActivationQuantization | None:
        """Ranges of the activations that are integers in service; None if all are floats."""
        return None if self.serves_floats else self.activations

    @property
    def precision(self) -> str:
        """Numbers that it is served with, one of `edged.spec.PRECISIONS`."""
        return FLOAT if self.served_activations is None else INTEGER

    @functools.cached_property
    def served(self) -> nn.Module:
        """The network as it computes in service: `engine`, or `model` with its activations rounded if quantized."""
        if self.engine is not None:
            return self.engine
        if self.served_activations is None:
            return self.model
        return _rounded(self.model, self.quantized, self.served_activations)

    @property
    def batch_size(self) -> int:
        """Number of images per forward pass that fit the planned memory."""
        return _batch_size(self.plan)

    @functools.cached_property
    def reference_logits(self) -> Tensor:
        """Outputs of `full` on the held-out images, on the CPU. A detector's take 9 MB per image."""
        return self._outputs(self.full)

    @functools.cached_property
    def logits(self) -> Tensor:
        """Outputs of `served` on the held-out images, on the CPU. A detector's take 9 MB per image."""
        return self._outputs(self.served)

    def varied(self, **changes: Any) -> Compressed:
        """Return a copy with other fields, which does not compute `reference_logits` again.

        Args:
            changes: Fields by name; not `full`, `cache` or `plan`.
        """
        copied = dataclasses.replace(self, **changes)
        if "reference_logits" in self.__dict__:
            copied.__dict__["reference_logits"] = self.reference_logits
        return copied

    def _outputs(self, model: nn.Module) -> Tensor:
        with exact_float32(device_of(model)):
            return predict(model, self.cache, self.cache.held_out, batch_size=self.batch_size)


def compress(
    model: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    *,
    resources: Resources | None = None,
    listener: ProgressListener | None = None,
    bits: Mapping[str, int] | None = None,
) -> Compressed:
    """Quantize all convolutions and linear layers of `model`.

    Args:
        model: Network in full precision and eval mode; other precisions are converted to float32. Its numbers are not
            modified. The work is done on the device of its parameters; the result stays there.
        cache: Calibration and held-out images.
        spec: How to quantize.
        bits: Bits of each layer by its name, as `edged.pipeline.mixed_precision` chooses them; None for those of the
            spec.
        resources: Memory to work in; changes speed only.
        listener: Receives the stages "layers" and "compare", their progress and the memory plan.

    Raises:
        ArchitectureError: The model has no layer to quantize.
        CalibrationError: A layer's Hessian cannot be used.
        MemoryLimitError: The memory limit is too low for this model.
    """
    watcher: ProgressListener = listener or SilentListener()
    # Convolutions of a CPU and of tensor cores run up to twice as fast on this layout.
    full = in_float32(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    ranges = None
    if spec.quantizes_activations:
        full, ranges = _with_ranges(full, spec)
    if ranges is None:
        spec = dataclasses.replace(spec, activation_bits=None)
    give_back_free_memory()  # the other layout and the checkpoint
    with watcher.stage("layers"):
        done = quantize_network(full, cache, spec, resources or Resources(), watcher, ranges, bits)
    quantized = {f"{name}.weight": result.weight for name, result in done.results.items()}
    with watcher.stage("compare"), exact_float32(device_of(full)):
        reference = _small_reference(full, cache, _batch_size(done.plan))
        served, accepted = _best_statistics(full, done.model, cache, spec, _batch_size(done.plan), reference)
        activations = None if ranges is None else _best_ranges(full, served, quantized, cache, ranges, reference)
    rest = {name: value for name, value in served.state_dict().items() if name not in quantized}
    reports = _reports(full, done, spec)
    found = Compressed(served, quantized, rest, reports, accepted, done.plan, full, cache, activations)
    if reference is not None:
        found.__dict__["reference_logits"] = reference
    return _with_cluster_affine(found, spec.seed, watcher) if spec.cluster_affine else found


def _with_cluster_affine(found: Compressed, seed: int, listener: ProgressListener) -> Compressed:
    """Return a classifier whose logits are transformed, or itself where that does not help on held-out images."""
    if not isinstance(getattr(found.model, cluster_affine.NAME, None), nn.Identity):
        log.info("cluster_affine has no effect: it is for classifiers")
        return found
    with listener.stage("correct"), exact_float32(device_of(found.full)):
        quantized, reference = (
            predict(model, found.cache, found.cache.calibration, found.batch_size, listener)
            for model in (found.model, found.full)
        )
        correction = fit_cluster_affine(quantized, reference, seed)
        held_out = predict(found.model, found.cache, found.cache.held_out, found.batch_size)
        errors = [squared_error(found.reference_logits, logits) for logits in (held_out, correction(held_out))]
    if not errors[1] < errors[0]:  # also where lines through almost equal logits are so steep that they overflow
        return found
    model = shared_copy(found.model)
    setattr(model, cluster_affine.NAME, correction.to(device_of(found.model)).eval())
    tensors = {f"{cluster_affine.NAME}.{name}": value for name, value in correction.state_dict().items()}
    return found.varied(model=model, rest=found.rest | tensors, corrected_share=1 - errors[1] / errors[0])


def _with_ranges(full: nn.Module, spec: QuantSpec) -> tuple[nn.Module, ActivationRanges | None]:
    """Return a network whose scales engines take, and the ranges of its values that are carried as codes, to measure.

    Returns:
        The network itself and None where only torch can compute it and the spec does not insist on integers.

    Raises:
        ArchitectureError: It has an operation that the execution graph does not have, and the spec insists.
    """
    try:
        positive = with_positive_scales(full)
        graph = build_graph(positive)
    except ArchitectureError:
        if spec.activation_bits != AUTO:
            raise
        return full, None
    placement = place(graph, tuple(head_parameters(graph)))  # the output layers of a detector compute in float
    return positive, ActivationRanges(placement, ACTIVATION_BITS, first_policies(placement))


def _small_reference(full: nn.Module, cache: ImageCache, batch_size: int) -> Tensor | None:
    """Return the outputs of `full` on the held-out images; None where they are large, as a detector's are."""
    first = predict(full, cache, cache.held_out[:1])
    if first.nbytes * len(cache.held_out) > SMALL_OUTPUTS:
        return None
    return predict(full, cache, cache.held_out, batch_size)


def _best_ranges(
    full: nn.Module,
    model: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    cache: ImageCache,
    measured: ActivationRanges,
    reference: Tensor | None,
) -> ActivationQuantization:
    """Choose the ranges of the activations by the error of the outputs on held-out images."""
    count = max(2, min(CHOICE_IMAGES, CHOICE_PIXELS // cache.input.size**2))
    every = max(1, len(cache.held_out) // count)
    some = cache.held_out[::every][:count]
    batches = list(cache.batches(some, CHOICE_BATCH))
    expected = predict(full, cache, some, CHOICE_BATCH) if reference is None else reference[::every][:count]
    graph = build_graph(on_cpu(model), _on_cpu(quantized))
    float_layers = tuple(head_parameters(graph))
    placement = place(graph, float_layers)
    ranges = Ranges(measured.histograms, measured.bits)

    def quantization(policies: Policies) -> ActivationQuantization:
        return ActivationQuantization(measured.bits, ranges.of(policies), float_layers)

    def error(policies: Policies, limit: float) -> float:
        grids, total = quantization(policies).grids(), 0.0
        for batch, outputs in zip(batches, torch.split(expected, CHOICE_BATCH), strict=True):
            total += squared_error(outputs, run_rounded(placement, grids, batch))
            if total >= limit:
                break
        return total

    with torch.inference_mode():
        return quantization(choose_policies(placement, error))


def _rounded(
    model: nn.Module, quantized: Mapping[str, QuantizedWeight], activations: ActivationQuantization
) -> RoundedNetwork:
    """Return the network with rounded activations, which computes on the CPU; the model stays on its device."""
    return RoundedNetwork(on_cpu(model), _on_cpu(quantized), activations).eval()


def _on_cpu(quantized: Mapping[str, QuantizedWeight]) -> dict[str, QuantizedWeight]:
    return {name: weight.to(CPU) for name, weight in quantized.items()}


def _batch_size(plan: MemoryPlan) -> int:
    """Return half the planned batch size, because a plain forward pass keeps values that the traced one frees."""
    return max(1, plan.steps[0].batch // 2)


def in_float32(model: nn.Module) -> nn.Module:
    """Return the model itself, or a float32 copy where any of its numbers have another precision.

    Args:
        model: The network. Not modified.
    """
    tensors = (tensor for tensor in model.state_dict().values() if tensor.is_floating_point())
    return model if all(tensor.dtype is torch.float32 for tensor in tensors) else copy.deepcopy(model).float()


def _best_statistics(
    full: nn.Module,
    quantized: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    batch_size: int,
    reference: Tensor | None,
) -> tuple[nn.Module, bool]:
    """Return the quantized network with other statistics, or with the trained ones where those come closer.

    Returns:
        The network, and whether the other statistics were accepted.
    """
    plain, changed = quantized, quantized
    if spec.statistics in CORRECTED:
        plain = _with_trained_statistics(full, quantized)
    elif spec.statistics is Statistics.REESTIMATE:
        changed = copy.deepcopy(quantized)
        batches = cache.batches(cache.calibration, batch_size)
        reestimate_batchnorm(changed, (moved(batch, device_of(full)) for batch in batches))
    else:
        return plain, False
    # The images are sorted by class: a subset must not be one of classes.
    every = max(1, len(cache.held_out) // CHOICE_IMAGES)
    known = full if reference is None else reference[::every]
    before, after = relative_errors(known, [plain, changed], cache, cache.held_out[::every], batch_size)
    return (changed, True) if after < before else (plain, False)


def _with_trained_statistics(full: nn.Module, quantized: nn.Module) -> nn.Module:
    """Return a copy of `quantized` that has its weights, and everything else from `full`; tensors are shared."""
    plain = shared_copy(full)
    weights = quantizable_layers(quantized)
    for name, layer in quantizable_layers(plain).items():
        layer.weight = weights[name].weight
    return plain


def _reports(model: nn.Module, done: Quantized, spec: QuantSpec) -> list[LayerReport]:
    layers = quantizable_layers(model)
    return [
        LayerReport(
            name=name,
            kind=type(layers[name]).__name__,
            rows=result.weight.codes.shape[0],
            columns=result.weight.codes.shape[1],
            bits=result.weight.bits,
            loss=result.loss,
            relative_loss=result.relative_loss,
            order=result.order.value,
            damp_ratio=result.damp_ratio,
            retries=result.retries,
            dead_inputs=result.dead_inputs,
            images=done.images[name],
        )
        for name, result in done.results.items()
    ]
