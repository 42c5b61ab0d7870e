"""The cluster-affine transformation of a classifier's logits (CAT, arXiv 2509.26277)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAME = "correction"  # of the module in a network, after its head


class ClusterAffine(nn.Module):
    """Scale and shift logits, by factors of the centroid that is nearest.

        y = gain[k] * z + shift[k],   k = argmin_k |z - centroids[k]|^2

    Args:
        centroids: Centroids [clusters, classes].
        gain: Factors, of the same shape.
        shift: Summands, of the same shape.
    """

    centroids: Tensor
    gain: Tensor
    shift: Tensor

    def __init__(self, centroids: Tensor, gain: Tensor, shift: Tensor) -> None:
        super().__init__()
        for name, value in (("centroids", centroids), ("gain", gain), ("shift", shift)):
            self.register_buffer(name, value)

    @classmethod
    def empty(cls, clusters: int, classes: int) -> ClusterAffine:
        """Return one with uninitialized tensors."""
        return cls(*(torch.empty(clusters, classes) for _ in range(3)))

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits [batch, classes] to logits of the same shape."""
        return transformed(logits, self.centroids, self.gain, self.shift)


def transformed(logits: Tensor, centroids: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Compute the transformation, see `ClusterAffine`."""
    nearest = nearest_centroid(logits, centroids)
    return logits * gain[nearest] + shift[nearest]


def nearest_centroid(logits: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the centroid nearest to each vector, int64 [batch].

    |z|^2, which is the same for all centroids, is left out of |z - c|^2 = |z|^2 - 2 z c + |c|^2.
    """
    return (centroids.square().sum(1) - 2 * logits @ centroids.T).argmin(1)
