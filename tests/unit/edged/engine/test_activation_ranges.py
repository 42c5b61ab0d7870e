from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edged.engine.activation_ranges import COUNTED_IMAGES, COUNTED_SIDE, ActivationRanges
from edged.errors import CalibrationError
from edged.execution.build import build_graph
from edged.execution.grids import ActivationGrid
from edged.execution.placement import place
from edged.execution.ranges import RangePolicy, choose_range
from edged.execution.selection import first_policies
from tests.support.executions import network

PLACEMENT = place(build_graph(network("option A")))


@pytest.fixture
def ranges() -> ActivationRanges:
    return ActivationRanges(PLACEMENT, 8, first_policies(PLACEMENT))


def values(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_observed_values_get_the_grid_of_their_policy(ranges: ActivationRanges) -> None:
    ranges.policies["relu"] = RangePolicy.MSE
    for seed in range(3):
        batch = values(8, seed)
        assert ranges.observe("relu", batch) is batch
    ranges.decide()
    assert ranges.grids.keys() == {"relu"}
    assert ranges.histograms["relu"].count == 3 * 8 * 16
    assert ranges.grids["relu"] == ActivationGrid.spanning(*choose_range(ranges.histograms["relu"], RangePolicy.MSE))


def test_only_values_that_are_carried_as_codes_are_observed(ranges: ActivationRanges) -> None:
    ranges.observe("bn1", values(2))  # absorbed by the ReLU that reads it
    ranges.observe("add", values(2))
    assert not ranges.histograms


def test_a_decided_grid_stays(ranges: ActivationRanges) -> None:
    ranges.observe("relu", values(2))
    ranges.decide()
    before = dict(ranges.grids)
    ranges.observe("relu", values(2) * 100)
    ranges.observe("x", values(2))
    ranges.decide()
    assert ranges.grids["relu"] == before["relu"]
    assert ranges.grids.keys() == {"relu", "x"}


def test_some_images_are_counted_and_all_count_for_the_extremes(ranges: ActivationRanges) -> None:
    for first in range(0, 2 * COUNTED_IMAGES, 48):
        ranges.observe("x", values(48, seed=first))
    late = values(1)
    late[0, 0, 0, 0] = 77.0
    ranges.observe("x", late)
    assert ranges.histograms["x"].count == COUNTED_IMAGES * 16
    assert ranges.histograms["x"].high == 77.0


def test_of_large_maps_some_positions_are_counted_and_all_count_for_the_extremes(ranges: ActivationRanges) -> None:
    maps = torch.randn(2, 3, 5 * COUNTED_SIDE, COUNTED_SIDE + 1, generator=torch.Generator().manual_seed(0))
    maps[1, 2, 3, 1] = -99.0  # between the rows and columns that are counted
    ranges.observe("x", maps)
    assert ranges.histograms["x"].count == maps[:, :, ::5, ::2].numel()
    assert ranges.histograms["x"].low == -99.0
    assert float(ranges.histograms["x"].bins()[0][0]) > -9


def test_counts_of_vectors_are_of_all_columns(ranges: ActivationRanges) -> None:
    ranges.observe("x", torch.ones(4, 99))
    assert ranges.histograms["x"].count == 4 * 99


def test_values_are_rounded_once_their_grid_is_decided(ranges: ActivationRanges) -> None:
    batch = values(2)
    assert ranges.rounded("x", batch) is batch
    ranges.observe("x", batch)
    ranges.decide()
    before = batch.clone()
    assert torch.equal(ranges.rounded("x", batch), ranges.grids["x"].nearest(before))
    assert torch.equal(batch, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_name(ranges: ActivationRanges, bad: float) -> None:
    batch = values(COUNTED_IMAGES + 8)
    batch[-1, 0, 0, 0] = bad  # beyond the images that are counted
    with pytest.raises(CalibrationError, match="value 'relu' of the network: an activation is not finite"):
        ranges.observe("relu", batch)
