from __future__ import annotations

import numpy as np
import pytest
import torch

from edged.engine.cluster_affine import STRENGTH, fit_cluster_affine
from edged.models.cluster_affine import nearest_centroid


def logits(count: int = 640, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits around ten places, and what quantization made of them: another line at each place."""
    generator = torch.Generator().manual_seed(seed)
    places = 8 * torch.randn(10, classes, generator=generator)
    at = torch.arange(count) % 10
    reference = places[at] + torch.randn(count, classes, generator=generator)
    factors = 0.5 + torch.rand(10, classes, generator=generator)
    noise = 0.1 * torch.randn(count, classes, generator=generator)
    return factors[at] * reference + noise, reference


def test_the_lines_are_those_of_least_squares() -> None:
    quantized, reference = logits()
    found = fit_cluster_affine(quantized, reference)
    assert len(found.centroids) == 640 // 32
    nearest = nearest_centroid(quantized, found.centroids)
    for cluster in range(len(found.centroids)):
        x, y = quantized[nearest == cluster].double().numpy(), reference[nearest == cluster].double().numpy()
        for column in range(5):
            slope, intercept = np.polyfit(x[:, column], y[:, column], 1)
            assert float(found.gain[cluster, column]) == pytest.approx(1 + STRENGTH * (slope - 1), rel=1e-3, abs=1e-3)
            assert float(found.shift[cluster, column]) == pytest.approx(STRENGTH * intercept, rel=1e-3, abs=1e-2)


def test_centroids_are_the_means_of_what_is_nearest_to_them() -> None:
    quantized, reference = logits(seed=4)
    found = fit_cluster_affine(quantized, reference)
    nearest = nearest_centroid(quantized, found.centroids)
    for cluster, centroid in enumerate(found.centroids):
        torch.testing.assert_close(quantized[nearest == cluster].mean(0), centroid, rtol=1e-4, atol=1e-4)


def test_logits_that_were_not_fitted_come_closer() -> None:
    quantized, reference = logits(1280)
    found = fit_cluster_affine(quantized[:640], reference[:640])
    before, after = ((z - reference[640:]).square().sum() for z in (quantized[640:], found(quantized[640:])))
    assert after < 0.5 * before


def test_a_seed_gives_the_same_factors() -> None:
    quantized, reference = logits()
    first, second, other = (fit_cluster_affine(quantized, reference, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["centroids"], other["centroids"])


def test_equal_logits_and_a_single_cluster_change_nothing() -> None:
    reference = torch.ones(100, 3)
    same = fit_cluster_affine(reference, reference)
    assert torch.equal(same(reference), reference)
    few = fit_cluster_affine(torch.randn(5, 3), torch.randn(5, 3))
    assert len(few.centroids) == 1


def test_a_constant_logit_is_only_shifted() -> None:
    quantized = torch.tensor([[2.0], [2.0], [2.0]])
    found = fit_cluster_affine(quantized, torch.tensor([[3.0], [4.0], [5.0]]))
    assert float(found.gain) == 1.0
    assert float(found(quantized)[0]) == pytest.approx(2 + STRENGTH * 2)
