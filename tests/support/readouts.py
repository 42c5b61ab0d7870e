"""Networks of random features with a head that is fitted by least squares: accurate without any training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edged.models.registry import Architecture, build


def fitted(architecture: Architecture, images: Tensor, labels: Tensor) -> nn.Module:
    """Return a network whose body is random and whose last linear layer is fitted to labeled images.

    Args:
        architecture: Architecture of the network; its head ends in a linear layer.
        images: Network inputs, float32 [n, channels, height, width].
        labels: Class indices, int64 [n].
    """
    torch.manual_seed(0)
    model = build(architecture)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d):
            module.reset_parameters()
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.momentum = None  # statistics of all batches
    inputs: list[Tensor] = []
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    hook = head.register_forward_hook(lambda _module, given, _output: inputs.append(given[0]))
    with torch.no_grad():
        model.train()(images)
        inputs.clear()
        model.eval()(images)
        hook.remove()
        features = torch.cat(inputs)
        mean = features.mean(0)
        centered = (features - mean).double()
        targets = nn.functional.one_hot(labels, head.out_features).double() - 1 / head.out_features
        gram = centered.T @ centered
        ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
        weight = torch.linalg.solve(gram + ridge, centered.T @ targets).T.float()
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(-(weight @ mean))
    return model.requires_grad_(False)
