"""Fitting of the cluster-affine transformation that brings a quantized classifier's logits closer to full precision.

arXiv 2509.26277: the logits of calibration images are clustered, and within each cluster every class has a line from
quantized to full-precision logits, by least squares. Applied are a share of it, because the fit knows few images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edged.models.cluster_affine import ClusterAffine, nearest_centroid

MOST_CLUSTERS = 64
IMAGES_PER_CLUSTER = 32  # of fewer, the lines follow single images: on held-out ones the error grows
STRENGTH = 0.4
_MOST_ROUNDS = 100


def fit_cluster_affine(quantized: Tensor, reference: Tensor, seed: int = 0) -> ClusterAffine:
    """Fit the transformation to the logits of calibration images.

    With cov, var and mean over the images of a cluster, for each class:

        gamma = cov(quantized, reference) / var(quantized)
        beta = mean(reference) - gamma * mean(quantized)
        y = z + strength * (gamma z + beta - z)

    Args:
        quantized: Logits of the quantized network [images, classes]. Not modified.
        reference: Logits of the network in full precision, of the same shape. Not modified.
        seed: Seed of the first centroids.
    """
    z, target = quantized.double(), reference.double()
    centroids = _k_means(z, max(1, min(MOST_CLUSTERS, len(z) // IMAGES_PER_CLUSTER)), seed)
    nearest = nearest_centroid(z, centroids)
    gain, shift = torch.ones_like(centroids), torch.zeros_like(centroids)
    for cluster in range(len(centroids)):
        members = nearest == cluster
        if not members.any():
            continue  # the identity
        x, difference = z[members], (target - z)[members]
        spread = x - x.mean(0)
        variance = spread.square().mean(0)
        slope = torch.where(variance > 0, (spread * difference).mean(0) / variance, 0.0)  # gamma - 1
        gain[cluster] += STRENGTH * slope
        shift[cluster] = STRENGTH * (difference.mean(0) - slope * x.mean(0))
    return ClusterAffine(centroids.float(), gain.float(), shift.float())


def _k_means(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the centroids [count, dimensions] by Lloyd's algorithm, begun as in k-means++ (Arthur, Vassilvitskii).

    Args:
        points: Points [n, dimensions], n >= count.
        count: Number of centroids.
        seed: Seed of the random choices.
    """
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (1,), generator=generator))
    centroids = points[first : first + 1]
    while len(centroids) < count:
        distance = _distance(points, centroids)
        if not bool(distance.any()):  # fewer different points than centroids
            break
        chosen = int(torch.multinomial(distance, 1, generator=generator))
        centroids = torch.cat((centroids, points[chosen : chosen + 1]))
    for _ in range(_MOST_ROUNDS):
        nearest = nearest_centroid(points, centroids)
        moved = torch.stack([_mean(points[nearest == i], centroids[i]) for i in range(len(centroids))])
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _distance(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the squared distance of each point to the nearest centroid."""
    return (points - centroids[nearest_centroid(points, centroids)]).square().sum(1)


def _mean(points: Tensor, otherwise: Tensor) -> Tensor:
    return points.mean(0) if len(points) else otherwise
