"""Whether a classifier is right more often than a constant answer would be, as far as the images can tell."""

from __future__ import annotations

import math

_ABOVE_CHANCE = 0.01  # probability of as many hits by chance, above which they show no skill
_SURE = 0.001  # share of wrong rejections that is accepted
_LEAST_SKILL = 0.2  # share of the way from chance to perfect that a usable network has come at least


def is_chance(correct: int, images: int, chance: float) -> bool:
    """Return whether a network is no better than chance, and the images are enough to say so.

    Both must hold: as many hits are likely by chance, and they are very unlikely for a network that has come a fifth of
    the way from chance to perfect. So 10 images decide nothing, nor does a weak network among many classes.

    Args:
        correct: Number of images that it is right on.
        images: Number of images.
        chance: Share of right answers of a constant answer, 0 to 1.
    """
    skilled = chance + _LEAST_SKILL * (1 - chance)
    return is_lucky(correct, images, chance) and tail(images - correct, images, 1 - skilled) <= _SURE


def is_lucky(correct: int, images: int, chance: float) -> bool:
    """Return whether as many right answers are likely by chance."""
    return tail(correct, images, chance) > _ABOVE_CHANCE


def tail(least: int, tries: int, share: float) -> float:
    """Return the probability of at least `least` hits in `tries`, each with probability `share`."""
    return math.fsum(math.comb(tries, k) * share**k * (1 - share) ** (tries - k) for k in range(least, tries + 1))
