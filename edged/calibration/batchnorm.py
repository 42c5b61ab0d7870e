"""BatchNorm re-estimation: after quantization the statistics of the layer outputs have moved."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Replace the running statistics of every BatchNorm by those of `batches`.

    Uses the cumulative mean over batches (momentum=None): an exponential mean would keep only the last few.

    Args:
        model: Changed in place; left in eval mode.
        batches: Network inputs [b, C, H, W].

    Returns:
        False when the model has no BatchNorm, and nothing was done.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        with torch.inference_mode():
            for batch in batches:
                model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    return bool(norms)
