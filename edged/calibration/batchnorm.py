"""Re-estimation of BatchNorm statistics, which no longer match the outputs of quantized layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor]) -> bool:
    """Replace the running statistics of every BatchNorm by those of `batches`.

    The statistics are the cumulative mean over batches (momentum=None), because an exponential mean would be dominated
    by the last few.

    Args:
        model: Network, modified in place and left in eval mode.
        batches: Network inputs [b, C, H, W].

    Returns:
        False if the model has no BatchNorm and was not modified.
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
