"""The network is quantized layer after layer, while its images travel through it once.

At each cut, before layers that read the same tensor:

        images -> ... prefix ... | cut k |  layers k  ... | cut k+1 |
    full     x  --------------------------> Y ----------> kept        (1) sums moments of x_hat against Y, moves on
    quantized x_hat                                                   (2) layers k are quantized on those moments
    quantized x_hat -----------------------> Y_hat -----> kept        (3) moves on with the quantized layers

With error propagation there are these two streams, and each layer is fitted to give the full-precision Y from the
inputs x_hat that it will really get. Without, there is one stream of full-precision inputs and each layer stands for
itself. Either way each image passes each layer once per stream. Later layers see more images than early ones: new
images enter at a cut by running through everything before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.calibration.geometry import Geometry, QuantizableLayer, geometry_of
from edged.calibration.moments import Moments, hessian, moments_for
from edged.engine.activations import ActivationStore
from edged.engine.images import AugmentedImages
from edged.engine.schedule import images_per_cut
from edged.engine.statistics import OutputStatistics, correct_bias, match_batchnorm, statistics_of_weight
from edged.models.graph import Cut, Program, Values
from edged.models.layers import quantizable_layers, shared_copy
from edged.observer import Observer
from edged.quant.layer import LayerResult, quantize_layer
from edged.spec import QuantSpec, Statistics

FULL, QUANTIZED = "full", "quantized"


@dataclass(frozen=True)
class Quantized:
    """A network with quantized layers.

    Attributes:
        model: Decoded weights and corrected statistics.
        results: By layer name, in order of execution.
        images: Calibration images that each layer saw.
    """

    model: nn.Module
    results: dict[str, LayerResult]
    images: dict[str, int]


def quantize_network(
    model: nn.Module, cache: ImageCache, spec: QuantSpec, batch_size: int, activation_memory: int, observer: Observer
) -> Quantized:
    """Quantize every convolution and linear layer.

    Args:
        model: Full precision, eval mode. Not modified; what does not change is shared with the result.
        cache: Its calibration images are used.
        spec: How to quantize.
        batch_size: Images per step; changes speed and memory only.
        activation_memory: Bytes of activations that may stay in memory; the rest goes to the cache's disk.
        observer: Told of layers done.

    Raises:
        ArchitectureError: There is nothing to quantize.
        CalibrationError: A layer's Hessian cannot be used.
    """
    # What does not fit the memory lies beside the cache meanwhile, where there is room for images.
    with ActivationStore(activation_memory, cache.directory) as store, torch.inference_mode():
        work = _Work(model, cache, spec, batch_size, store)
        for index in range(len(work.program.cuts)):
            work.quantize_at(index)
            observer.progress(index + 1, len(work.program.cuts))
    return Quantized(work.quantized, work.results, work.images)


class _Work:
    def __init__(
        self, model: nn.Module, cache: ImageCache, spec: QuantSpec, batch_size: int, store: ActivationStore
    ) -> None:
        self.program = Program(model)
        self.quantized = shared_copy(model)
        self.results: dict[str, LayerResult] = {}
        self.images: dict[str, int] = {}
        self._spec, self._batch_size = spec, batch_size
        self._layers = quantizable_layers(model)
        self._full_modules = dict(model.named_modules())
        self._quantized_modules = dict(self.quantized.named_modules())
        self._images = AugmentedImages(cache, spec.augmentation, spec.seed)
        self._counts = images_per_cut(self.program, model, self._layers, self._images.batch(0, 1), len(self._images))
        self._store = store
        self._bits = _bits_by_layer(self.program, spec)

    def quantize_at(self, index: int) -> None:
        """Quantize the layers at a cut and move all streams to the next."""
        cut, count = self.program.cuts[index], self._counts[index]
        following = self.program.cuts[index + 1] if index + 1 < len(self.program.cuts) else None
        batches = range(-(-count // self._batch_size))
        sums = _CutSums(cut, self._layers, self._spec.propagation > 0 and index > 0)
        for batch in batches:
            full = self._values(FULL, batch, cut)
            inputs = self._values(QUANTIZED, batch, cut)[cut.source] if sums.has_targets else full[cut.source]
            outputs = sums.update(inputs, full[cut.source])
            if following is not None:
                known = {self.program.value_of(name): y for name, y in outputs.items()}
                self._store.put(FULL, batch, self.program.run(full | known, cut.index, following, self._full_modules))
        for name in cut.layers:
            self._install(name, sums)
            self.images[name] = count
        if following is not None and self._spec.propagation > 0:
            for batch in batches:
                values = self._values(QUANTIZED, batch, cut)
                self._store.put(
                    QUANTIZED, batch, self.program.run(values, cut.index, following, self._quantized_modules)
                )

    def _values(self, stream: str, batch: int, cut: Cut) -> Values:
        """What is live at the cut; images that enter here run through the layers before it."""
        if (stream, batch) in self._store:
            return self._store.get(stream, batch)
        modules = self._full_modules if stream == FULL else self._quantized_modules
        start = batch * self._batch_size
        pixels = self._images.batch(start, start + self._batch_size)
        return self.program.run({self.program.input: pixels}, 0, cut, modules)

    def _install(self, name: str, sums: _CutSums) -> None:
        """Quantize one layer and put it, with the statistics behind it, into the quantized network."""
        layer, moments = self._layers[name], sums.moments[name]
        spec = dataclasses.replace(self._spec, bits=self._bits[name])
        result = quantize_layer(layer.weight, hessian(moments), spec, sums.cross(name))
        self.results[name] = result
        installed = self._quantized_modules[name]
        decoded = result.weight.decode()
        installed.weight = nn.Parameter(decoded.to(memory_format=_format_of(decoded)), requires_grad=False)
        if self._spec.statistics is not Statistics.MATCH:
            return
        before = (
            sums.outputs[name].result()
            if sums.has_targets
            else statistics_of_weight(layer.weight, moments, result.target_power)
        )
        after = statistics_of_weight(decoded, moments, result.power)
        norm = self._quantized_modules.get(self.program.followers.get(name, ""))
        if isinstance(norm, nn.BatchNorm2d):
            match_batchnorm(norm, before, after)
        else:
            correct_bias(installed, before, after)


class _CutSums:
    """Moments of the layers at one cut: one per geometry, since they read the same tensor."""

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

    def update(self, inputs: Tensor, full: Tensor) -> dict[str, Tensor]:
        """Add a batch of layer inputs. Returns the full-precision outputs by layer when they are targets, else none."""
        outputs: dict[str, Tensor] = {}
        if self.has_targets:
            for name, layer in self._layers.items():
                outputs[name] = layer(full)
                self.outputs[name].update(outputs[name], layer.bias)
        for names in self._sharing.values():
            targets = [_without_bias(outputs[name], self._layers[name].bias) for name in names if name in outputs]
            self.moments[names[0]].update(inputs, targets)
        return outputs

    def cross(self, name: str) -> Tensor | None:
        """2/n Y X_hat^T [conv_groups, rows / conv_groups, d] of a layer, None without targets."""
        if not self.has_targets:
            return None
        moments = self.moments[name]
        position = self._sharing[geometry_of(self._layers[name])].index(name)
        return moments.cross(position) * (2 / moments.positions)


def _bits_by_layer(program: Program, spec: QuantSpec) -> dict[str, int]:
    names = [name for cut in program.cuts for name in cut.layers]
    bits = dict.fromkeys(names, spec.bits)
    last = dict.fromkeys(program.last_layers, spec.last_bits or spec.bits)
    return bits | {names[0]: spec.first_bits or spec.bits} | last


def _without_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return y
    return y - (bias if y.dim() == 2 else bias[:, None, None])


def _format_of(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format
