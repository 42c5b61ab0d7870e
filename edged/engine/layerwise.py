"""Layer-by-layer quantization of a network in one pass of the calibration images.

At each cut, before layers that read the same tensor:

        images -> ... prefix ... | cut k |  layers k  ... | cut k+1 |
    full     x  --------------------------> Y ----------> stored      (1) sum moments of x_hat against Y, advance
    quantized x_hat                                                   (2) quantize layers k on those moments
    quantized x_hat -----------------------> Y_hat -----> stored      (3) advance with the quantized layers

With error propagation there are these two streams, and each layer is fitted to reproduce the full-precision Y from its
actual inputs x_hat. Without error propagation there is one stream of full-precision inputs, and layers are quantized
independently. In both cases each image passes each layer once per stream. Later layers see more images than early
ones: new images enter at a cut by running through everything before it.

Two of these streams compute convolutions in integers (`edged.engine.integer_convolution`): the quantized one where it
carries codes, and the full-precision one where there are no targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.calibration.geometry import Geometry, QuantizableLayer, geometry_of
from edged.calibration.moments import Moments, hessian, moments_for
from edged.device import device_of, exact_float32, synchronize
from edged.engine.activation_ranges import ActivationRanges
from edged.engine.activations import ActivationStore
from edged.engine.images import AugmentedImages
from edged.engine.integer_convolution import CodedConvolution, integers_are_faster, with_rounded_convolutions
from edged.engine.memory_plan import SPARED_BLOCK, MemoryPlan, Resources, plan_work
from edged.engine.schedule import Step
from edged.engine.statistics import CORRECTED, OutputStatistics, correct_statistics, statistics_of_weight
from edged.memory import give_back_blocks_of, give_back_free_memory
from edged.models.graph import Cut, Program, Values
from edged.models.layers import quantizable_layers, shared_copy
from edged.progress import ProgressListener
from edged.quant.grid import QuantizedWeight
from edged.quant.layer import LayerResult, quantize_layer
from edged.spec import QuantSpec, Scheme

Visit = Callable[[str, QuantizableLayer, Tensor, Moments], None]  # name, layer, Hessian, moments

FULL, QUANTIZED = "full", "quantized"
# Codes of 8 bits, less their zero points, fit an engine's 8 bits only around the middle. Sums of two products of 7-bit
# codes and activations fit 16 bits, to which some processors clip them, only around the middle.
AROUND_THE_MIDDLE = 7
# Most weights of a small layer, as a share of all. Boxes show errors that classes hide.
SMALL_SHARE, SMALL_SHARE_OF_DETECTOR = 1 / 200, 1 / 100


@dataclass(frozen=True)
class Quantized:
    """A network with quantized layers.

    Attributes:
        model: Network with decoded weights and corrected statistics.
        results: Result of each layer by its name, in order of execution.
        images: Number of calibration images that each layer saw, by layer name.
        plan: Memory plan that was followed.
        ranges: Ranges of the activations; None if these stay in float.
    """

    model: nn.Module
    results: dict[str, LayerResult]
    images: dict[str, int]
    plan: MemoryPlan
    ranges: ActivationRanges | None


def quantize_network(
    model: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    resources: Resources,
    listener: ProgressListener,
    ranges: ActivationRanges | None = None,
    bits: Mapping[str, int] | None = None,
) -> Quantized:
    """Quantize every convolution and linear layer.

    Args:
        model: Full-precision network in eval mode, quantized on the device of its parameters. Not modified; unchanged
            tensors are shared with the result.
        cache: Cache of the calibration images.
        spec: Quantization settings.
        resources: Memory limits; change speed only.
        listener: Listener that is notified of the plan and of the number of layers done.
        ranges: Ranges of the activations, which are measured and then followed by the quantized stream; None to keep
            activations in float.
        bits: Bits of each layer by its name; None for those of the spec.

    Raises:
        ArchitectureError: The network has no layers to quantize.
        CalibrationError: A layer's Hessian is not finite or cannot be made positive definite.
        MemoryLimitError: No plan fits the memory limit.
    """
    device = device_of(model)
    images = AugmentedImages(cache, spec.augmentation, spec.seed, device)
    program = Program(model)
    plan = plan_work(program, model, images, spec, resources)
    listener.planned(plan.to_dict())
    if plan.sparing:
        give_back_blocks_of(SPARED_BLOCK)
    # Values that do not fit the memory are stored in the folder of the cache, whose filesystem has room for images.
    store = ActivationStore(plan.activation_memory, cache.directory)
    with store, exact_float32(device), torch.inference_mode():
        widths = bits_by_layer(program, quantizable_layers(model), spec) if bits is None else bits
        work = _Work(model, program, images, spec, plan, store, ranges, widths)
        done, total = 0, sum(len(cut.layers) for cut in program.cuts)
        for index, cut in enumerate(program.cuts):
            work.quantize_at(index)
            done += len(cut.layers)
            listener.progress(done, total)
        synchronize(device)  # the end of the stage that the listener times
    return Quantized(work.quantized, work.results, work.images, plan, ranges)


def visit_layers(
    model: nn.Module,
    cache: ImageCache,
    spec: QuantSpec,
    resources: Resources,
    listener: ProgressListener,
    visit: Visit,
) -> None:
    """Run the images through the full-precision network once, and show each layer's moments.

    Args:
        model: Full-precision network in eval mode, on the device to compute on. Not modified.
        cache: Cache of the calibration images.
        spec: Settings that the memory is planned by; its `propagation` must be 0.
        resources: Memory limits; change speed only.
        listener: Listener that is notified of the plan and of the number of layers done.
        visit: Called for each layer in order of execution.

    Raises:
        ArchitectureError, MemoryLimitError: As for `quantize_network`.
    """
    device = device_of(model)
    images = AugmentedImages(cache, 1, spec.seed, device)
    program = Program(model)
    plan = plan_work(program, model, images, spec, resources)
    listener.planned(plan.to_dict())
    store = ActivationStore(plan.activation_memory, cache.directory)
    with store, exact_float32(device), torch.inference_mode():
        work = _Visits(model, program, images, spec, plan, store, None, {}, visit=visit)
        for index in range(len(program.cuts)):
            work.quantize_at(index)
            listener.progress(index + 1, len(program.cuts))
        synchronize(device)


class _Work:
    def __init__(
        self,
        model: nn.Module,
        program: Program,
        images: AugmentedImages,
        spec: QuantSpec,
        plan: MemoryPlan,
        store: ActivationStore,
        ranges: ActivationRanges | None,
        bits: Mapping[str, int],
    ) -> None:
        self.quantized = shared_copy(model)
        self.results: dict[str, LayerResult] = {}
        self.images: dict[str, int] = {}
        self._program, self._spec, self._plan = program, spec, plan
        self._layers = quantizable_layers(model)
        self._full_modules = dict(model.named_modules())
        if plan.integers and spec.propagation == 0:
            self._full_modules = with_rounded_convolutions(self._full_modules, self._layers)
        self._quantized_modules = dict(self.quantized.named_modules())
        self._images = images
        self._store = store
        self._bits = bits
        self._ranges = ranges
        self._observe = None if ranges is None else ranges.observe
        self._round = None if ranges is None else ranges.rounded

    def quantize_at(self, index: int) -> None:
        """Quantize the layers at a cut and advance all streams to the next cut."""
        cuts, step = self._program.cuts, self._plan.steps[index]
        cut, following = cuts[index], cuts[index + 1] if index + 1 < len(cuts) else None
        sums = _CutSums(cut, self._layers, self._spec.propagation > 0 and index > 0)
        for first in range(0, step.images, step.batch):
            self._accumulate(sums, step, first, cut, following)
        if self._ranges is not None:
            self._ranges.decide()
        give_back_free_memory()
        for names in sums.sharing:
            H = hessian(sums.moments[names[0]])
            for name in names:
                self._install(name, cut.source, H, sums)
                self.images[name] = step.images
            del H
        give_back_free_memory()
        if following is not None and self._spec.propagation > 0:
            for first in range(0, step.images, step.batch):
                values = self._values(QUANTIZED, step, first, cut)
                moved = self._program.run(values, cut.index, following, self._quantized_modules, replace=self._round)
                self._store.put(QUANTIZED, first, moved)

    def _accumulate(self, sums: _CutSums, step: Step, first: int, cut: Cut, following: Cut | None) -> None:
        """Add a batch to the sums and advance its full-precision values to the next cut."""
        full = self._values(FULL, step, first, cut)
        if sums.has_targets:
            values = self._values(QUANTIZED, step, first, cut)
            inputs = values[cut.source]
            if following is not None:  # needed again when the layers are quantized
                self._store.put(QUANTIZED, first, values)
            del values
            for name, y in sums.update(inputs, full[cut.source]).items():
                value = self._program.value_of(name)
                full[value] = y if self._observe is None else self._observe(value, y)
            del inputs
        else:
            sums.update(full[cut.source])
        if following is not None:
            moved = self._program.run(full, cut.index, following, self._full_modules, replace=self._observe)
            self._store.put(FULL, first, moved)

    def _values(self, stream: str, step: Step, first: int, cut: Cut) -> Values:
        """Return the live values at the cut for images first..first + batch, running new images up to it."""
        stop, parts = min(first + step.batch, step.images), []
        position = first
        while position < stop:
            if (stream, position) in self._store:
                part = self._store.get(stream, position)
            else:
                part = self._enter(stream, position, stop, cut)
            parts.append(part)
            taken, position = position, position + part[cut.source].shape[0]
            if position < stop or taken > first:  # now part of a larger batch
                self._store.discard(stream, taken)
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part.pop(name) for part in parts]) for name in list(parts[0])}

    def _enter(self, stream: str, first: int, stop: int, cut: Cut) -> Values:
        """Run images that no earlier cut has seen up to this cut."""
        pixels = self._images.batch(first, min(first + self._plan.steps[0].batch, stop))
        name = self._program.input
        if stream == FULL:
            if self._observe is not None:
                self._observe(name, pixels)
            return self._program.run({name: pixels}, 0, cut, self._full_modules)
        if self._round is not None:
            pixels = self._round(name, pixels)
        return self._program.run({name: pixels}, 0, cut, self._quantized_modules, replace=self._round)

    def _install(self, name: str, source: str, H: Tensor, sums: _CutSums) -> None:
        """Quantize one layer that reads `source`, and install its weight and corrected statistics in the network."""
        layer, moments = self._layers[name], sums.moments[name]
        spec = dataclasses.replace(spec_of_layer(self._spec, self._bits[name]), rows_at_once=self._plan.rows_at_once)
        result = quantize_layer(layer.weight, H, spec, sums.cross(name))
        self.results[name] = result
        installed = self._quantized_modules[name]
        decoded = result.weight.decode()
        installed.weight = nn.Parameter(decoded.to(memory_format=_format_of(decoded)), requires_grad=False)
        self._quantized_modules[name] = self._coded(installed, source, result.weight)
        if self._spec.statistics not in CORRECTED:
            return
        before = (
            sums.outputs[name].result()
            if sums.has_targets
            else statistics_of_weight(layer.weight, moments, result.target_power)
        )
        after = statistics_of_weight(decoded, moments, result.power)
        norm = self._quantized_modules.get(self._program.followers.get(name, ""))
        correct_statistics(installed, norm, before, after, self._spec.statistics)

    def _coded(self, layer: QuantizableLayer, source: str, weight: QuantizedWeight) -> nn.Module:
        """Return a module that computes what a quantized layer does, faster where it reads codes."""
        grid = None if self._ranges is None else self._ranges.grid_of(source)
        if grid is None or not self._plan.integers or not integers_are_faster(layer):
            return layer
        if not isinstance(layer, nn.Conv2d) or not CodedConvolution.fits(weight, grid):
            return layer
        return CodedConvolution(layer, weight, grid)


class _Visits(_Work):
    """Shows the moments of each layer instead of quantizing it."""

    def __init__(self, *args: Any, visit: Visit) -> None:
        super().__init__(*args)
        self._visit = visit

    def _install(self, name: str, source: str, H: Tensor, sums: _CutSums) -> None:
        self._visit(name, self._layers[name], H, sums.moments[name])


class _CutSums:
    """Moments of the layers at one cut, shared by layers of the same geometry because all read the same tensor."""

    def __init__(self, cut: Cut, layers: Mapping[str, QuantizableLayer], has_targets: bool) -> None:
        self.has_targets = has_targets
        self.moments: dict[str, Moments] = {}
        self.outputs = {name: OutputStatistics() for name in cut.layers}
        self._layers = {name: layers[name] for name in cut.layers}
        self._sharing: dict[Geometry, list[str]] = {}
        for name, layer in self._layers.items():
            self._sharing.setdefault(geometry_of(layer), []).append(name)
        for names in self._sharing.values():
            shared = moments_for(self._layers[names[0]])
            self.moments |= dict.fromkeys(names, shared)

    @property
    def sharing(self) -> list[list[str]]:
        """The layers' names, grouped by shared Hessian."""
        return list(self._sharing.values())

    def update(self, inputs: Tensor, full: Tensor | None = None) -> dict[str, Tensor]:
        """Add a batch of layer inputs, with the layers' outputs for the inputs `full` as targets.

        Returns:
            The target outputs by layer; empty if `full` is None.
        """
        outputs: dict[str, Tensor] = {}
        if full is not None:
            for name, layer in self._layers.items():
                outputs[name] = layer(full)
                y = outputs[name]
                # A linear layer may read any number of dimensions; its channels are the last one.
                self.outputs[name].update(y.flatten(0, -2) if isinstance(layer, nn.Linear) else y, layer.bias)
        for names in self._sharing.values():
            targets = [_without_bias(outputs[name], self._layers[name]) for name in names if name in outputs]
            self.moments[names[0]].update(inputs, targets)
        return outputs

    def cross(self, name: str) -> Tensor | None:
        """Return a layer's 2/n Y X_hat^T [conv_groups, rows / conv_groups, d], or None without targets."""
        if not self.has_targets:
            return None
        moments = self.moments[name]
        position = self._sharing[geometry_of(self._layers[name])].index(name)
        return moments.cross(position) * (2 / moments.positions)


def given_bits(model: nn.Module, spec: QuantSpec) -> dict[str, int | None]:
    """Return the bits that a spec gives each layer of a network, by name in order of execution; None if it gives none.

    Args:
        model: The network. Not modified.
        spec: Settings; only with bits AUTO are there layers without bits.

    Raises:
        ArchitectureError: The network has no layers to quantize.
    """
    program = Program(model)
    given = bits_by_layer(program, quantizable_layers(model), spec)
    return {name: given.get(name) for cut in program.cuts for name in cut.layers}


def bits_by_layer(program: Program, layers: Mapping[str, QuantizableLayer], spec: QuantSpec) -> dict[str, int]:
    """Return the bits of each layer by its name, in order of execution.

    Args:
        program: Program of the network.
        layers: Quantizable layers of the network by name.
        spec: Settings. With bits AUTO, only layers that others of its settings give bits are in the result.
    """
    names = [name for cut in program.cuts for name in cut.layers]
    heads = program.last_layers if len(program.last_layers) > 1 else ()
    share = SMALL_SHARE_OF_DETECTOR if heads else SMALL_SHARE
    most = share * sum(layers[name].weight.numel() for name in names)
    small = {name for name in names if name in heads or layers[name].weight.numel() <= most}
    # A single layer is both the first and the last one: `last_bits` applies, or else `first_bits`.
    given = {
        name: (spec.last_bits if name in program.last_layers else None)
        or (spec.first_bits if name == names[0] else None)
        or (spec.bits_of_small_layers if name in small else spec.uniform_bits)
        for name in names
    }
    return {name: bits for name, bits in given.items() if bits is not None}


def spec_of_layer(spec: QuantSpec, bits: int) -> QuantSpec:
    """Return the settings of a layer with these bits.

    Args:
        spec: Settings of the network.
        bits: Bits of the layer.
    """
    centered = spec.quantizes_activations and bits >= AROUND_THE_MIDDLE
    scheme = Scheme.SYMMETRIC if centered else spec.scheme
    return dataclasses.replace(spec, bits=bits, scheme=scheme, size_limit=None, max_drop=None)


def _without_bias(y: Tensor, layer: QuantizableLayer) -> Tensor:
    if layer.bias is None:
        return y
    return y - (layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None])


def _format_of(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format
