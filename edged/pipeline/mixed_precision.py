"""Bits of each layer, chosen by measurement within a limit of bytes or of lost accuracy (`bits: auto`).

    sensitivities of the layers  ->  bits of least error within the limit  ->  one quantization with these bits

With a limit of accuracy the limit of bytes is found by trying: each try is a quantization, measured on the held-out
images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edged.artifacts.weights import stored_bytes
from edged.calibration.dataset import ImageCache
from edged.compress import Compressed, compress, in_float32
from edged.engine.layerwise import given_bits
from edged.engine.memory_plan import Resources
from edged.engine.sensitivity import WIDTHS, Distance, LayerSensitivity, measure_sensitivity
from edged.errors import CalibrationError, UsageError
from edged.evaluation.fidelity import detection_error, squared_error
from edged.evaluation.gates import METRICS, Gates
from edged.memory import give_back_free_memory
from edged.models.registry import Architecture
from edged.pipeline.evaluation import Labels, evaluate
from edged.progress import ProgressListener, SilentListener
from edged.quant.bit_allocation import Allocation, Option, allocate
from edged.quant.pack import packed_bytes
from edged.spec import AUTO, DetectionSpec, QuantSpec

log = logging.getLogger(__name__)

# Quantizations that look for the fewest bytes within a limit of accuracy. Each halves the ratio of the limits of bytes
# that are left, on a logarithmic scale: from 4 (8 bits to 2) to 1.09.
TRIES = 4
SMALLEST_SIDE = 256  # pixels of images on which the layers of a detector are compared


@dataclass(frozen=True)
class HeldOut:
    """What losses of accuracy are measured with.

    Attributes:
        architecture: Architecture of the network.
        labels: Labels of the held-out images.
        detection: Rules for the predictions of a detector that become boxes; not used for a classifier.
    """

    architecture: Architecture
    labels: Labels
    detection: DetectionSpec


def gates_with(gates: Gates, spec: QuantSpec) -> Gates:
    """Return gates that hold a network to the drop that its bits are chosen for.

    Args:
        gates: The gates that were asked for.
        spec: How to quantize.
    """
    if spec.max_drop is None:
        return gates
    return dataclasses.replace(
        gates, max_drop=min(spec.max_drop, math.inf if gates.max_drop is None else gates.max_drop)
    )


class Compressor:
    """Quantizes a network by a spec; where its bits are AUTO, by those that are chosen for each layer.

    The layers' sensitivities are measured once, whatever is quantized with them.

    Args:
        model: Network in full precision and eval mode, on the device to compute on. Not modified.
        cache: Calibration and held-out images.
        held_out: What losses of accuracy are measured with.
        resources: Memory to work in.
        listener: Receives the stage "sensitivity" and those of `edged.compress.compress`.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: ImageCache,
        held_out: HeldOut,
        resources: Resources | None = None,
        listener: ProgressListener | None = None,
    ) -> None:
        self._model, self._cache, self._held_out = in_float32(model), cache, held_out
        self._resources, self._listener = resources or Resources(), listener or SilentListener()
        self._measured: dict[str, LayerSensitivity] | None = None

    def __call__(self, spec: QuantSpec) -> Compressed:
        """Quantize the network.

        Args:
            spec: How to quantize.

        Raises:
            UsageError: `spec.size_limit` is less than the fewest bits take.
            CalibrationError: `spec.max_drop` is given, and the held-out images have no labels; or a layer's Hessian
                cannot be used.
            ArchitectureError, MemoryLimitError: As for `edged.compress.compress`.
        """
        if spec.bits != AUTO:
            return self._quantized(spec)
        if spec.max_drop is not None and not self._held_out.labels:
            raise CalibrationError(
                "bits auto with max_drop measures the accuracy, and the images have no labels that fit the model; sort"
                " them into one folder a class, or give size_limit instead"
            )
        sizes = _Sizes(self._model, given_bits(self._model, spec))
        least, most = sizes.uniform(min(WIDTHS)), sizes.uniform(max(WIDTHS))
        if spec.size_limit is not None:
            most = min(most, spec.size_limit)
        if most < least:  # known before the images are seen
            raise UsageError(
                f"size_limit is {most} bytes, and with the fewest bits the weights take {least} bytes; give at least"
                " that"
            )
        if self._measured is None:
            self._measured = self._sensitivities(spec)
        choice = _Choice(self._measured, sizes, least)
        if spec.max_drop is None:
            return self._at(spec, choice, most, [])
        return self._within_drop(spec, choice, most, spec.max_drop)

    def _sensitivities(self, spec: QuantSpec) -> dict[str, LayerSensitivity]:
        plan = self._held_out.architecture.plan
        distance: Distance = squared_error
        shrink = 1
        if plan is not None:
            shrink = _shrink(self._cache.input.size, max(plan.strides()))
            distance = functools.partial(detection_error, plan=plan, side=self._cache.input.size // shrink)
        full = self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        with self._listener.stage("sensitivity"):
            return measure_sensitivity(full, self._cache, spec, distance, self._resources, self._listener, shrink)

    def _quantized(self, spec: QuantSpec, bits: Mapping[str, int] | None = None) -> Compressed:
        return compress(self._model, self._cache, spec, resources=self._resources, listener=self._listener, bits=bits)

    def _at(self, spec: QuantSpec, choice: _Choice, limit: int, tries: list[dict[str, Any]]) -> Compressed:
        """Quantize with the bits of least error within a limit of bytes."""
        found = choice.within(limit)
        done = self._quantized(spec, found.bits)
        return done.varied(chosen_bits=choice.report(spec, found, tries))

    def _within_drop(self, spec: QuantSpec, choice: _Choice, most: int, max_drop: float) -> Compressed:
        """Quantize with the fewest bytes, among TRIES limits, whose measured loss of accuracy holds."""
        low, high = choice.least, most
        tries: list[dict[str, Any]] = []
        last: Compressed | None = None
        last_limit = -1
        for _ in range(TRIES):
            limit = round(math.sqrt(low * high))
            found = choice.within(limit)
            if any(entry["bits"] == list(found.bits.values()) for entry in tries):
                break
            last = None  # its memory is needed
            give_back_free_memory()
            last, last_limit = self._quantized(spec, found.bits), limit
            drop = self._drop(last, spec)
            tries.append({"bytes": found.bytes, "drop": drop, "bits": list(found.bits.values())})
            log.info("%d bytes lose %.2f points; %g are allowed", found.bytes, drop, max_drop)
            low, high = (low, limit) if drop <= max_drop else (limit, high)
        listed = [{key: entry[key] for key in ("bytes", "drop")} for entry in tries]
        if last is not None and last_limit == high:
            return last.varied(chosen_bits=choice.report(spec, choice.within(high), listed))
        del last
        give_back_free_memory()
        return self._at(spec, choice, high, listed)

    def _drop(self, compressed: Compressed, spec: QuantSpec) -> float:
        """Return the points of the task's metric that are lost on the held-out images.

        Activations count as well where they have to be integers. With AUTO they are in float where they lose too much.
        """
        held_out = self._held_out
        served = compressed.varied(serves_floats=spec.activation_bits == AUTO)
        totals = evaluate(served, held_out.architecture, held_out.labels, held_out.detection).totals
        return float(totals["drop"][METRICS[held_out.architecture.task][0]])


@dataclass(frozen=True)
class _Found:
    """Bits of each layer by its name, the bytes of the artifact's weights file with them, and how they were found."""

    bits: dict[str, int]
    bytes: int
    allocation: Allocation


class _Sizes:
    """Bytes of an artifact's weights file by the bits of the layers."""

    def __init__(self, model: nn.Module, given: Mapping[str, int | None]) -> None:
        self._state: dict[str, Tensor] = model.state_dict()
        self._given = given

    def __call__(self, bits: Mapping[str, int]) -> int:
        return stored_bytes(self._state, {f"{name}.weight": width for name, width in bits.items()})

    def uniform(self, bits: int) -> int:
        """Return the bytes with this many bits in each layer that is not given others."""
        return self({name: given or bits for name, given in self._given.items()})


class _Choice:
    """The choice of bits among what was measured."""

    def __init__(self, measured: Mapping[str, LayerSensitivity], sizes: _Sizes, least: int) -> None:
        self._measured, self._sizes, self.least = measured, sizes, least
        self._options = [_options(layer) for layer in measured.values()]

    def within(self, limit: int) -> _Found:
        """Return the bits of least error within a limit of bytes, which must be at least `least`."""
        codes = sum(min(option.bytes for option in options) for options in self._options)
        # The head of the file grows by some digits where codes grow: bytes for codes shrink until the whole file fits.
        budget = codes + limit - self.least
        while True:
            allocation = allocate(self._options, budget)
            bits = {name: option.bits for name, option in zip(self._measured, allocation.chosen, strict=True)}
            if (taken := self._sizes(bits)) <= limit:
                return _Found(bits, taken, allocation)
            budget = max(codes, budget - (taken - limit))

    def report(self, spec: QuantSpec, found: _Found, tries: list[dict[str, Any]]) -> dict[str, Any]:
        """Return how bits were chosen, as it stands in the report."""
        weights = [layer.weights for layer in self._measured.values()]
        each = list(found.bits.values())
        return {
            "size_limit": spec.size_limit,
            "max_drop": spec.max_drop,
            "bytes": found.bytes,
            "least": min(each),
            "most": max(each),
            "mean": sum(bits * count for bits, count in zip(each, weights, strict=True)) / sum(weights),
            "error": found.allocation.cost,
            "bound": found.allocation.bound,
            "frontier": self._frontier(),
            "tries": tries,
            "layers": [
                {
                    "name": name,
                    "bits": found.bits[name],
                    "given": layer.fixed is not None,
                    "weights": layer.weights,
                    "errors": {str(bits): error for bits, error in layer.errors.items()},
                    "losses": {str(bits): loss for bits, loss in layer.losses.items()},
                }
                for name, layer in self._measured.items()
            ],
        }

    def _frontier(self) -> dict[str, list[dict[str, Any]]]:
        """Return bytes and error of each width for all layers, and of the choice with the same bytes at most."""
        uniform, chosen = [], []
        for bits in WIDTHS:
            widths = {name: layer.fixed or bits for name, layer in self._measured.items()}
            error = sum(layer.errors[widths[name]] for name, layer in self._measured.items())
            uniform.append({"bits": bits, "bytes": self._sizes(widths), "error": error})
            found = self.within(self._sizes(widths))
            chosen.append({"bytes": found.bytes, "error": found.allocation.cost})
        return {"uniform": uniform, "chosen": chosen}


def _shrink(size: int, stride: int) -> int:
    """Return the factor by which a detector's images are shrunk where only layers are compared.

    Args:
        size: Side of the images in pixels.
        stride: Largest stride of the detector, by which a side must be divisible.
    """
    return 2 if size % (2 * stride) == 0 and size >= 2 * SMALLEST_SIDE else 1


def _options(layer: LayerSensitivity) -> list[Option]:
    widths = WIDTHS if layer.fixed is None else (layer.fixed,)
    return [Option(bits, packed_bytes(layer.weights, bits), layer.errors[bits]) for bits in widths]
