"""When images say that a network is no better than a constant answer."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from edged.evaluation.chance import is_chance, tail


@pytest.mark.parametrize(
    ("correct", "images", "chance", "expected"),
    [
        (6, 64, 0.1, True),
        (0, 64, 0.1, True),  # worse than chance: classes in another order
        (60, 64, 0.1, False),
        (20, 64, 0.1, False),
        (1, 10, 0.1, False),  # too few images to say so
        (0, 20, 0.1, False),
        (50, 100, 0.5, False),
        (250, 500, 0.5, True),
        (60, 100, 0.5, False),  # weak, but 60 % may be what there is to reach
        (0, 64, 0.001, True),
        (2, 64, 0.001, False),  # two hits among a thousand classes are no luck
        (155, 1024, 0.1, False),
        (64, 64, 1.0, False),  # one class only
    ],
)
def test_only_enough_images_say_that_there_is_no_skill(
    correct: int, images: int, chance: float, expected: bool
) -> None:
    assert is_chance(correct, images, chance) is expected


def test_the_tail_is_that_of_the_binomial_distribution() -> None:
    for least, tries, share in ((0, 5, 0.3), (3, 5, 0.3), (200, 1024, 0.1), (1024, 1024, 0.99)):
        assert tail(least, tries, share) == pytest.approx(binom.sf(least - 1, tries, share), rel=1e-9)
