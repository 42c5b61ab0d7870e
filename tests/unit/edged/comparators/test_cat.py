from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edged.comparators.cat import with_transformed_logits
from edged.comparators.method import Options
from edged.comparators.network import quantize_with
from edged.engine.cluster_affine import STRENGTH
from edged.errors import ArchitectureError
from edged.models.layers import shared_copy
from tests.support.comparators import images, network


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(torch.cat(list(images())))


def test_logits_of_a_rounded_network_come_closer_to_full_precision():
    full = network()
    rounded = quantize_with("rtn", full, images, Options(bits=2)).model
    before = logits(rounded)
    moved = with_transformed_logits(rounded, full, images)
    errors = [float((found - logits(full)).square().sum()) for found in (before, logits(moved))]
    assert errors[1] < 0.9 * errors[0]
    torch.testing.assert_close(logits(rounded), before)  # not modified


def test_a_shift_of_all_logits_is_undone_in_the_published_part():
    full = network()
    shifted = shared_copy(full)
    head = shifted.get_submodule("linear")
    assert isinstance(head, nn.Linear)
    head.bias = nn.Parameter(head.bias + 1.0, requires_grad=False)
    moved = with_transformed_logits(shifted, full, images)
    torch.testing.assert_close(logits(moved), logits(full) + (1 - STRENGTH))


def test_a_detector_is_refused():
    with pytest.raises(ArchitectureError, match="classifier"):
        with_transformed_logits(nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), images)
