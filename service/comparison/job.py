"""One measurement of `edged compare`, as it is sent to the process that makes it. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.spec import RECIPES, Choice

FULL_PRECISION = "full precision"
# The rows of Table 1 in arXiv 2509.05576 and REQuant (edged.comparators.network), then edged's own recipes.
COMPARATORS = ("rtn", "bias-correction", "adaquant", "adaround", "bit-split", "brecq", "obq", "requant")
CAT = "cat"  # recipe `balanced`, and its logits transformed (edged.comparators.cat)
METHODS = (*COMPARATORS, CAT, "paper", *(name for name in RECIPES if name != "paper"))
DEFAULT_METHODS = tuple(name for name in METHODS if name != "best")
PEERS_OF_WEIGHTS = ("brevitas-gptq", "brevitas-qronos", "aimet-adaround")
# Peers that quantize weights and activations, to 8 bits only.
PEERS_OF_INTEGERS = ("quantize-static", "nncf")
PEERS = (*PEERS_OF_WEIGHTS, *PEERS_OF_INTEGERS)
INTEGER_BITS = 8
REFERENCE = "balanced"  # the method whose score the others are compared with


@dataclass(frozen=True)
class Measurement:
    """A method at a number of bits, on one checkpoint.

    Attributes:
        checkpoint: The checkpoint.
        calibration: Folder of calibration images.
        data: Labeled images on which accuracy is measured.
        cache: Folder where decoded images are kept.
        method: FULL_PRECISION, or one of METHODS or PEERS.
        bits: Bits per weight; 32 for full precision.
        arch: Expected architecture, or None.
        choice: Which network of the checkpoint to take.
        input: Fields of InputSpec that differ from the architecture's default.
        images: Most calibration images.
        iterations: Most optimization steps of a layer or block; None for as many as the method's paper takes.
        seed: Seed of every random choice.
        settings: Fields of QuantSpec that replace those of a recipe; not used by other methods.
        threads: Threads for computing; None for one per core.
        device: "auto", "cpu" or "cuda".
    """

    checkpoint: Path
    calibration: Path
    data: Path
    cache: Path
    method: str = FULL_PRECISION
    bits: int = 32
    arch: str | None = None
    choice: Choice = dataclasses.field(default_factory=Choice)
    input: dict[str, Any] = dataclasses.field(default_factory=dict)
    images: int | None = None
    iterations: int | None = None
    seed: int = 0
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    threads: int | None = None
    device: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        return plain | {"choice": self.choice.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measurement:
        """Read what `to_dict` returns."""
        paths = {name: Path(data[name]) for name in ("checkpoint", "calibration", "data", "cache")}
        return cls(**{**data, **paths, "choice": Choice.from_dict(data["choice"])})
