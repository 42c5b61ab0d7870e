"""CAT (arXiv 2509.26277): the logits of a quantized classifier, moved towards those of full precision.

As published, a share of the fitted lines is applied in any case; `cluster_affine` of edged.spec keeps them only where
they lower the error on held-out images. Both are fitted by `edged.engine.cluster_affine`.
"""

from __future__ import annotations

import torch
from torch import nn

from edged.comparators.inputs import Images
from edged.device import device_of, exact_float32
from edged.engine.cluster_affine import fit_cluster_affine
from edged.errors import ArchitectureError
from edged.models.cluster_affine import NAME
from edged.models.layers import shared_copy


def require_classifier(model: nn.Module) -> None:
    """Check that a network has logits to transform.

    Raises:
        ArchitectureError: It is a detector.
    """
    if not isinstance(getattr(model, NAME, None), nn.Identity):
        raise ArchitectureError("CAT transforms the logits of a classifier; choose other methods for a detector")


def with_transformed_logits(quantized: nn.Module, full: nn.Module, images: Images, seed: int = 0) -> nn.Module:
    """Return a copy of a quantized classifier whose logits are transformed.

    Args:
        quantized: The quantized network, eval mode. Not modified; the copy shares its tensors.
        full: The network in full precision, eval mode. Not modified.
        images: Returns the calibration images in batches on the networks' device, the same ones at every call.
        seed: Seed of the first centroids.

    Raises:
        ArchitectureError: It is a detector.
    """
    require_classifier(quantized)
    with torch.inference_mode(), exact_float32(device_of(full)):
        logits = [torch.cat([network(batch).float().cpu() for batch in images()]) for network in (quantized, full)]
    model = shared_copy(quantized)
    setattr(model, NAME, fit_cluster_affine(logits[0].clone(), logits[1].clone(), seed).to(device_of(full)).eval())
    return model
