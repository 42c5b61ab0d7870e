"""What a network loses by each layer at each width, measured before the widths are chosen.

One pass of the images gives each layer's moments, and from these follow its losses: at SOLVED by quantizing it, between
them by interpolation, because each bit divides the loss by about the same factor. How much a layer matters for the
network's outputs is measured: with the layer alone quantized at ANCHORS, on held-out images. Only the rest of the
network behind the layer is run again, from values that were kept at its cut. Between and beyond the anchors the error
follows the layer's loss, which is known at every width:

    error(b) = error(a) * loss(b) / loss(a)     outside the anchors
    log error is linear in log loss             between two of them
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from edged.calibration.dataset import ImageCache
from edged.calibration.geometry import QuantizableLayer
from edged.calibration.moments import Moments
from edged.device import device_of, exact_float32, moved
from edged.engine.layerwise import bits_by_layer, spec_of_layer, visit_layers
from edged.engine.memory_plan import Resources
from edged.engine.statistics import CORRECTED, correct_statistics, statistics_of_weight
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.progress import ProgressListener
from edged.quant.grid import QuantizedWeight
from edged.quant.layer import quantize_at_widths
from edged.spec import QuantSpec, Search

WIDTHS = tuple(range(2, 9))
SOLVED = (2, 3, 4, 8)  # widths at which layers are quantized
ANCHORS = (2, 4)  # those at which a layer's effect on the outputs is measured
PASS_IMAGES = 128  # most calibration images for the moments: losses are compared, not minimized
MIN_PROBES, MAX_PROBES = 16, 64  # held-out images on which effects are measured
# Images of the probes times layers, as a share of the calibration images: bounds the time that measuring takes.
PROBE_SHARE = 0.5
PROBE_BATCH = 16

Distance = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class LayerSensitivity:
    """What a layer costs at each width.

    Attributes:
        weights: Number of its codes.
        fixed: Bits that the settings give it; None if they are to be chosen.
        losses: Its loss at each width as a share of its output's energy.
        errors: Error of the network's outputs at each width with this layer alone quantized; falls with the width.
    """

    weights: int
    fixed: int | None
    losses: Mapping[int, float]
    errors: Mapping[int, float]


@dataclass(frozen=True)
class _Probe:
    """A layer quantized at one width."""

    weight: QuantizedWeight
    layer: QuantizableLayer  # with its corrected bias; its weight is set while it is used
    norm: nn.Module | None

    def modules(self, name: str, follower: str | None) -> dict[str, nn.Module]:
        """Return the modules to use instead of the network's own, by name."""
        layer = copy.copy(self.layer)
        layer._parameters = {**self.layer._parameters}
        layer.weight = nn.Parameter(self.weight.decode(), requires_grad=False)
        replaced: dict[str, nn.Module] = {name: layer}
        if follower is not None and self.norm is not None:
            replaced[follower] = self.norm
        return replaced


def measure_sensitivity(
    model: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    distance: Distance,
    resources: Resources,
    listener: ProgressListener,
    shrink: int = 1,
) -> dict[str, LayerSensitivity]:
    """Measure what each layer costs at each width.

    Args:
        model: Full-precision network in eval mode, float32, on the device to compute on. Not modified.
        cache: Calibration and held-out images.
        spec: Settings of the quantization that follows.
        distance: Error of outputs [b, ...] relative to those of full precision, summed over the images.
        resources: Memory limits.
        listener: Receives the number of layers and probes that are done.
        shrink: Factor by which the sides of the held-out images are divided, for networks that take images of several
            sizes. The effect that is measured for a layer varies more between images than with their size.

    Returns:
        The sensitivity of each layer by its name, in order of execution.

    Raises:
        ArchitectureError, CalibrationError, MemoryLimitError: As for `edged.engine.layerwise.quantize_network`.
    """
    program = Program(model)
    layers = quantizable_layers(model)
    norms = dict(model.named_modules())
    losses: dict[str, dict[int, float]] = {}
    probes: dict[str, dict[int, _Probe]] = {}
    settings = dataclasses.replace(spec, propagation=0.0, augmentation=1, search=Search.WEIGHTED, beam=1)
    specs = [spec_of_layer(settings, bits) for bits in SOLVED]

    def visit(name: str, layer: QuantizableLayer, H: Tensor, moments: Moments) -> None:
        results = dict(zip(SOLVED, quantize_at_widths(layer.weight, H, specs), strict=True))
        losses[name] = _with_widths_between({bits: result.relative_loss for bits, result in results.items()})
        probes[name] = {}
        norm = norms[program.followers[name]] if name in program.followers else None
        for bits in ANCHORS:
            result, corrected, changed = results[bits], copy.deepcopy(layer), copy.deepcopy(norm)
            corrected.weight = layer.weight
            if spec.statistics in CORRECTED:
                before = statistics_of_weight(layer.weight, moments, result.target_power)
                after = statistics_of_weight(result.weight.decode(), moments, result.power)
                correct_statistics(corrected, changed, before, after, spec.statistics)
            probes[name][bits] = _Probe(result.weight, corrected, changed)

    kept = len(ANCHORS) * sum(layer.weight.numel() for layer in layers.values())
    limit = resources.memory_limit
    if limit is not None:
        resources = dataclasses.replace(resources, memory_limit=max(1, limit - kept))
    visit_layers(model, _fewer(cache, PASS_IMAGES), settings, resources, listener, visit)
    errors = _errors(model, program, cache, probes, distance, listener, shrink)
    fixed = bits_by_layer(program, layers, spec)
    return {
        name: LayerSensitivity(
            layers[name].weight.numel(), fixed.get(name), losses[name], _at_all_widths(losses[name], errors[name])
        )
        for name in losses
    }


def _errors(
    model: nn.Module,
    program: Program,
    cache: ImageCache,
    probes: Mapping[str, Mapping[int, _Probe]],
    distance: Distance,
    listener: ProgressListener,
    shrink: int,
) -> dict[str, dict[int, float]]:
    """Return the mean error of the outputs of an image with one layer quantized, by layer and width."""
    found = {name: dict.fromkeys(widths, 0.0) for name, widths in probes.items()}
    some = _evenly(cache.held_out, _probe_images(len(cache.calibration), len(probes)))
    device, modules = device_of(model), dict(model.named_modules())
    with torch.inference_mode(), exact_float32(device):
        for start in range(0, len(some), PROBE_BATCH):
            pixels = cache.batch(some[start : start + PROBE_BATCH])
            if shrink > 1:
                pixels = avg_pool2d(pixels, shrink)
            pixels = pixels.to(memory_format=torch.channels_last)
            values, at = {program.input: moved(pixels, device)}, 0
            exact = program.run(dict(values), 0, None, modules)["output"]
            for index, cut in enumerate(program.cuts):
                values = program.run(values, at, cut, modules, complete=True)
                at = cut.index
                for name in cut.layers:
                    for bits, probe in probes[name].items():
                        replaced = modules | probe.modules(name, program.followers.get(name))
                        changed = program.run(dict(values), at, None, replaced)["output"]
                        found[name][bits] += distance(exact, changed) / len(some)
                done = start * len(program.cuts) + len(pixels) * (index + 1)
                listener.progress(done, len(some) * len(program.cuts))
    return found


def _probe_images(calibration: int, layers: int) -> int:
    return max(MIN_PROBES, min(MAX_PROBES, int(PROBE_SHARE * calibration / layers)))


def _evenly(indices: Tensor, count: int) -> Tensor:
    """Return at most `count` entries, evenly spaced: images are sorted by class."""
    count = min(count, len(indices))
    return indices[torch.arange(count) * len(indices) // count]


def _fewer(cache: ImageCache, count: int) -> ImageCache:
    """Return a cache with at most `count` of the calibration images."""
    some = copy.copy(cache)
    some.calibration = _evenly(cache.calibration, count)
    return some


def _with_widths_between(losses: Mapping[int, float]) -> dict[int, float]:
    """Return the loss at each width from those at some, by interpolating its logarithm linearly in the bits."""
    known = sorted(losses)
    found = dict(losses)
    for low, high in itertools.pairwise(known):
        for bits in range(low + 1, high):
            share = (bits - low) / (high - low)
            found[bits] = losses[low] ** (1 - share) * losses[high] ** share
    return {bits: found[bits] for bits in sorted(found)}


def _at_all_widths(losses: Mapping[int, float], errors: Mapping[int, float]) -> dict[int, float]:
    """Return the error at each width, which never rises with it, from those at the anchors and the losses at all."""
    found: dict[int, float] = {}
    for bits in sorted(losses, reverse=True):
        below = max((anchor for anchor in errors if anchor <= bits), default=None)
        above = min((anchor for anchor in errors if anchor >= bits), default=None)
        near = below if below is not None else above
        assert near is not None  # noqa: S101 - there are anchors
        if below is None or above is None or below == above:
            error = errors[near] * (losses[bits] / losses[near] if losses[near] > 0 else 1.0)
        else:
            error = _between(losses[bits], (losses[below], errors[below]), (losses[above], errors[above]))
        found[bits] = max(error, found.get(bits + 1, 0.0))
    return {bits: found[bits] for bits in sorted(found)}


def _between(loss: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """Interpolate the error at a loss between two pairs of loss and error, linearly in the logarithms."""
    values = (loss, *low, *high)
    if min(values) <= 0 or low[0] == high[0]:
        return low[1]
    share = (math.log(loss) - math.log(high[0])) / (math.log(low[0]) - math.log(high[0]))
    return math.exp(math.log(high[1]) + min(max(share, 0.0), 1.0) * (math.log(low[1]) - math.log(high[1])))
