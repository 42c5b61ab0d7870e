"""How close a quantized model stays to its full-precision original. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edged.errors import CalibrationError


@dataclass(frozen=True)
class Fidelity:
    """Two models on the same images.

    Attributes:
        agreement: Images for which both give the same class the largest logit, percent. Says nothing of a detector,
            for which edged.evaluation.detection has its own.
        relative_error: |q - fp|^2 / |fp|^2 over all logits; 0 is equal, 1 is as wrong as no output at all.
    """

    agreement: float
    relative_error: float


def fidelity(reference: Tensor, logits: Tensor) -> Fidelity:
    """Compare logits, or a detector's raw outputs.

    Args:
        reference: Full-precision logits fp [n, classes], or outputs of any shape [n, ...].
        logits: Quantized logits q, likewise.

    Returns:
        Agreement and error; the error is infinite where only the reference is all zero.

    Raises:
        CalibrationError: The shapes differ, or there are no images.
    """
    if reference.shape != logits.shape or not reference.numel():
        raise CalibrationError(
            f"cannot compare logits {list(logits.shape)} with {list(reference.shape)}; give both models the same images"
        )
    agreement = 100.0 * float((reference.flatten(1).argmax(1) == logits.flatten(1).argmax(1)).double().mean())
    # Image by image: in float64 the outputs of a detector would take 17 MB for each.
    error = sum(float((q.double() - fp.double()).square().sum()) for q, fp in zip(logits, reference, strict=True))
    power = sum(float(fp.double().square().sum()) for fp in reference)
    if power == 0:
        return Fidelity(agreement, 0.0 if error == 0 else float("inf"))
    return Fidelity(agreement, error / power)
