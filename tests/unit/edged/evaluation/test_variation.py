"""How far outputs move from image to image."""

from __future__ import annotations

import torch

from edged.evaluation.variation import Variation


def test_the_spread_is_relative_to_the_largest_output_over_all_batches() -> None:
    outputs = torch.tensor([[1.0, -4.0], [1.0, -4.0], [1.5, -4.0]])
    assert Variation().add(outputs).relative == 0.5 / 4
    assert Variation().add(outputs[:1]).add(outputs[1:2]).add(outputs[2:]).relative == 0.5 / 4
    assert Variation().add(outputs[:2]).relative == 0


def test_zeros_do_not_vary_and_a_single_image_says_nothing() -> None:
    assert Variation().add(torch.zeros(3, 2, 2)).relative == 0
    assert Variation().relative is None
    assert Variation().add(torch.ones(1, 2)).relative is None
