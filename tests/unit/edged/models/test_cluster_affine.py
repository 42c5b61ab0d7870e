from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.models.cluster_affine import ClusterAffine, nearest_centroid


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000))
def test_the_nearest_centroid_is_nearest(count: int, clusters: int, classes: int, seed: int) -> None:
    vectors, centroids = numbers(count, classes, seed=seed), numbers(clusters, classes, seed=seed + 1)
    distances = (vectors[:, None] - centroids[None]).square().sum(2)
    chosen = distances.gather(1, nearest_centroid(vectors, centroids)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1))


def test_each_vector_gets_the_factors_of_its_centroid() -> None:
    transformation = ClusterAffine(
        torch.tensor([[0.0, 0.0], [10.0, 0.0]]),
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[0.5, 0.0], [0.0, -1.0]]),
    )
    logits = torch.tensor([[1.0, 1.0], [9.0, 1.0], [4.0, 5.0]])
    assert transformation(logits).tolist() == [[1.5, 2.0], [27.0, 3.0], [4.5, 10.0]]
