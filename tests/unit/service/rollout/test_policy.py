"""How much a new generation takes. What follows from it: tests/end_to_end/test_swaps.py."""

from __future__ import annotations

import pytest

from service.rollout.policy import needed_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("live", "live_network", "network", "needed"),
    [
        (400, 100, 100, 600),  # as much as the one in service, and half as much again
        (400, 100, 300, 1264),  # a larger network: what loading it takes
        (400, 300, 100, 464),  # a smaller one
        (400, 0, 300, 1264),  # an artifact of before is in service
        (400, 100, 0, 600),
        (0, 0, 100, 534),  # none in service to measure
        (0, 100, 0, 384),
        (300, 299, 1, 192),  # never less than torch itself
    ],
)
def test_needed_memory_follows_the_networks(live: int, live_network: int, network: int, needed: int) -> None:
    assert needed_bytes(live * MIB, live_network * MIB, network * MIB) == needed * MIB
