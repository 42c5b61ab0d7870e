"""Accuracy of classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edged.calibration.dataset import ImageCache
from edged.device import device_of, moved
from edged.errors import CalibrationError
from edged.progress import ProgressListener, SilentListener


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy of a classifier.

    Attributes:
        top1: Share of images whose label has the largest logit, in percent.
        top5: Share of images whose label is among the five largest logits (all if there are fewer), in percent.
        images: Number of images.
    """

    top1: float
    top5: float
    images: int


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Compute top-1 and top-5 accuracy.

    Args:
        logits: Logits [n, classes]. Not modified.
        labels: Class indices, int64 [n]. Not modified.

    Raises:
        CalibrationError: There are no images, a different number of labels, or a label without logit.
    """
    count, classes = logits.shape
    if count == 0 or labels.shape != (count,):
        raise CalibrationError(f"cannot score {count} predictions against {labels.numel()} labels; give one for each")
    if int(labels.max()) >= classes or int(labels.min()) < 0:
        raise CalibrationError(
            f"label {int(labels.max())} has no logit: the model knows {classes} classes; use its class folders"
        )
    hits = _ranked_hits(logits, labels)
    top1, top5 = (100.0 * float(hits[:, :k].any(1).double().mean()) for k in (1, 5))
    return Accuracy(top1, top5, count)


def top1_hits(logits: Tensor, labels: Tensor) -> list[bool]:
    """Return for each image whether its label has the largest logit, as `accuracy` counts it.

    Args:
        logits: Logits [n, classes]. Not modified.
        labels: Class indices, int64 [n]. Not modified.
    """
    found: list[bool] = _ranked_hits(logits, labels)[:, 0].tolist()
    return found


def _ranked_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each of the five largest logits is that of the label, bool [n, 5 or fewer]."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return best == labels.to(best.device)[:, None]


def predict(
    model: nn.Module,
    cache: ImageCache,
    indices: Tensor,
    batch_size: int = 32,
    listener: ProgressListener | None = None,
) -> Tensor:
    """Run a model on images in eval mode; the mode of each module is restored afterwards.

    Args:
        model: Network that maps [b, channels, size, size] to logits [b, classes]. It runs on its parameters' device.
        cache: Cache of the images.
        indices: Indices of the images, int64 [n].
        batch_size: Number of images per forward pass.
        listener: Listener that is notified of the number of images done.

    Returns:
        Outputs of the model, float32 [n, classes], on the CPU.

    Raises:
        CalibrationError: `indices` is empty.
    """
    if not len(indices):
        raise CalibrationError("no images to predict; give at least one")
    listener = listener or SilentListener()
    device = device_of(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    outputs: list[Tensor] = []
    done = 0
    try:
        with torch.inference_mode():
            for batch in cache.batches(indices, batch_size):
                outputs.append(model(moved(batch, device)).float().cpu())
                done += len(batch)
                listener.progress(done, len(indices))
    finally:
        for module, training in modes:
            module.training = training
    # Cloned outside inference mode, so that the result is an ordinary tensor.
    return torch.cat(outputs).clone()
