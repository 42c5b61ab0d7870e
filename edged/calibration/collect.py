"""Collecting the Grams of many layers in one forward pass over the calibration images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from edged.calibration.gram import Gram, QuantizableLayer, gram_for


def collect_grams(model: nn.Module, layers: Mapping[str, QuantizableLayer], batches: Iterable[Tensor]) -> dict[str, Gram]:
    """Run `model` over `batches` and sum the input Gram of every layer.

    Layers that read the same tensor with the same geometry get the same Gram object, computed once.

    Args:
        model: In eval mode; not modified.
        layers: Layers of the model by name.
        batches: Network inputs [b, C, H, W].

    Returns:
        A Gram for each layer that ran.
    """
    collector = _Collector(layers)
    with torch.inference_mode(), collector.attached():
        for batch in batches:
            model(batch)
            collector.end_of_batch()
    return collector.grams


class _Collector:
    def __init__(self, layers: Mapping[str, QuantizableLayer]) -> None:
        self.grams: dict[str, Gram] = {}
        self._layers = layers
        # Inputs of the batch that is running, with the geometries already counted for each.
        self._counted: list[tuple[Tensor, tuple[object, ...], Gram]] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                handle = layer.register_forward_pre_hook(
                    lambda module, args, name=name: self._see(name, module, args[0])
                )
                hooks.callback(handle.remove)
            yield

    def end_of_batch(self) -> None:
        self._counted.clear()

    def _see(self, name: str, layer: QuantizableLayer, x: Tensor) -> None:
        geometry = _geometry(layer)
        for seen, counted, gram in self._counted:
            if seen is x and counted == geometry:
                self.grams[name] = gram
                return
        gram = self.grams.get(name) or gram_for(layer)
        gram.update(x)
        self.grams[name] = gram
        self._counted.append((x, geometry, gram))


def _geometry(layer: QuantizableLayer) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return ("linear",)
    return (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
