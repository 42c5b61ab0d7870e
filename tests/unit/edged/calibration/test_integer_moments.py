from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from edged.calibration import integer_moments
from edged.calibration.conv_moments import LagMoments
from edged.calibration.geometry import is_pointwise, is_same_3x3
from edged.calibration.integer_moments import (
    LEVELS,
    LEVELS_WITHOUT_VNNI,
    IntegerColumnMoments,
    IntegerLagMoments,
    integers_are_faster,
    levels,
)
from edged.calibration.moments import DenseMoments, Moments, UnfoldMoments, moments_for
from tests.support.geometries import GEOMETRIES, SMALL_MAPS
from tests.support.repository import ROOT

pytestmark = pytest.mark.skipif(not levels(), reason="this processor has no fast products of integers")

LAYERS = [
    *(nn.Conv2d(8, 6, **geometry) for geometry in GEOMETRIES if geometry.get("groups", 1) == 1),
    nn.Conv2d(8, 6, 1, stride=2),
    nn.Linear(8, 6),
    nn.Conv2d(8, 1, 3, padding=1),
    nn.Linear(8, 1),
]


def in_integers(layer: nn.Module) -> Moments:
    if isinstance(layer, nn.Conv2d) and is_same_3x3(layer):
        return IntegerLagMoments(layer.in_channels)
    return IntegerColumnMoments(layer)


def in_floats(layer: nn.Module) -> Moments:
    if isinstance(layer, nn.Conv2d) and is_same_3x3(layer):
        return LagMoments(layer.in_channels)
    return DenseMoments(layer) if isinstance(layer, nn.Linear) or is_pointwise(layer) else UnfoldMoments(layer)


def codes(*shape: int, channel: int, most: int, least: int | None = None) -> Tensor:
    """Return random codes, scaled by another power of two for each channel, of which the largest is in every one."""
    drawn = torch.randint(-most if least is None else least, most + 1, shape).float().movedim(channel, 0).contiguous()
    drawn.view(len(drawn), -1)[:, 0] = most
    scales = 2.0 ** (torch.arange(len(drawn)) % 5 - 2)
    return (drawn.view(len(drawn), -1) * scales[:, None]).view_as(drawn).movedim(0, channel)


def batch_of(layer: nn.Module, most: int, *, positive: bool = False) -> tuple[Tensor, Tensor]:
    ends = {"most": 2 * most, "least": 0} if positive else {"most": most}
    if isinstance(layer, nn.Linear):
        return codes(5, 3, 8, channel=2, **ends), codes(5, 3, layer.out_features, channel=2, most=most)
    x = codes(3, 8, 9, 7, channel=1, **ends)
    return x, codes(*layer(x).shape, channel=1, most=most)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("most", [most for most in (LEVELS, LEVELS_WITHOUT_VNNI) if most <= levels()])
def test_of_codes_the_sums_are_those_in_floats(
    layer: nn.Module, most: int, positive: bool, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    monkeypatch.setattr(integer_moments, "levels", lambda: most)
    found, expected = in_integers(layer), in_floats(layer)
    for _ in range(2):
        x, y = batch_of(layer, most, positive=positive)
        found.update(x, [y])
        expected.update(x, [y])
    assert found.positions == expected.positions
    assert_close(found.total(), expected.total(), rtol=1e-5, atol=1e-2)
    assert_close(found.cross(0), expected.cross(0), rtol=1e-5, atol=1e-2)
    assert_close(found.take_gram(0.5), expected.take_gram(0.5), rtol=1e-5, atol=1e-2)


@settings(max_examples=40, deadline=None)
@given(**SMALL_MAPS, least=st.sampled_from([-levels(), 0]))
def test_maps_of_any_size(channels: int, height: int, width: int, images: int, least: int, seed: int):
    torch.manual_seed(seed)
    x = codes(images, channels, height, width, channel=1, most=least + 2 * levels(), least=least)
    y = codes(images, 2, height, width, channel=1, most=levels())
    found, expected = IntegerLagMoments(channels), LagMoments(channels)
    found.update(x, [y])
    expected.update(x, [y])
    assert_close(found.total(), expected.total(), rtol=1e-5, atol=1e-2)
    assert_close(found.cross(0), expected.cross(0), rtol=1e-5, atol=1e-2)
    assert_close(found.take_gram(), expected.take_gram(), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_rounding_is_bounded_and_leaves_the_diagonal(layer: nn.Module):
    torch.manual_seed(0)
    x, y = (torch.randn_like(each) for each in batch_of(layer, 1))
    found, expected = in_integers(layer), in_floats(layer)
    found.update(x, [y])
    expected.update(x, [y])
    # Each factor of a product is off by half a step at most, at every position.
    step = 1.01 / levels()
    bound = found.positions * float(x.abs().max() * step * max(x.abs().max(), y.abs().max()))
    assert float((found.cross(0) - expected.cross(0)).abs().max()) < bound
    gram, exact = found.take_gram(), expected.take_gram()
    assert float((gram - exact).abs().max()) < bound
    assert float((gram - exact).norm() / exact.norm()) < 0.02
    assert_close(gram[0].diagonal(), exact[0].diagonal(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 3, 3, stride=2)], ids=str)
def test_long_sums_are_divided(layer: nn.Conv2d, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(3, 4, 9, 7)
    whole, divided = in_integers(layer), in_integers(layer)
    whole.update(x)
    monkeypatch.setattr(integer_moments, "MOST_SUMMED", 10)
    divided.update(x)
    assert_close(divided.take_gram(), whole.take_gram(), rtol=1e-5, atol=1e-4)


def test_a_map_may_be_smaller_than_the_stride():
    layer, x = nn.Conv2d(4, 3, 1, stride=2), codes(5, 4, 1, 1, channel=1, most=levels())
    found, expected = IntegerColumnMoments(layer), DenseMoments(layer)
    found.update(x)
    expected.update(x)
    assert found.positions == expected.positions == 5
    assert_close(found.take_gram(), expected.take_gram(), rtol=1e-5, atol=1e-2)


def test_the_longest_sum_fits_its_integers():
    assert integer_moments.MOST_SUMMED * (2 * LEVELS) ** 2 < 2**31
    x = torch.ones(integer_moments.MOST_SUMMED + 5, 64)
    moments = IntegerColumnMoments(nn.Linear(64, 64))
    moments.update(x, [x])
    assert_close(moments.take_gram(), torch.full((1, 64, 64), float(len(x))))
    assert_close(moments.cross(0), torch.full((1, 64, 64), float(len(x))))


def test_codes_are_smaller_where_the_processor_clips_sums():
    program = (
        "import torch; from edged.calibration.integer_moments import levels; torch.manual_seed(0);"
        "most = levels(); codes = torch.randint(-most, most + 1, (2, 999, 96), dtype=torch.int8);"
        "codes[:, :500] = most; left, right = codes;"
        "assert (torch._int_mm(left.t(), right) == left.t().int() @ right.int()).all(); print(most)"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(LEVELS_WITHOUT_VNNI), done.stderr


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 3, 3, padding=1), nn.Linear(4, 3)], ids=str)
def test_values_that_are_not_finite_are_not_hidden(layer: nn.Module, wrong: float):
    x = torch.randn(2, 4, 5, 5) if isinstance(layer, nn.Conv2d) else torch.randn(6, 4)
    x.flatten()[7] = wrong
    moments = in_integers(layer)
    moments.update(x)
    assert not bool(moments.take_gram().isfinite().all())


def test_a_channel_of_zeros_stays_dead():
    x = torch.randn(2, 4, 6, 6)
    x[:, 2] = 0
    moments = IntegerLagMoments(4)
    moments.update(x)
    gram = moments.take_gram()[0].reshape(4, 9, 4, 9)
    assert not gram[2].any()
    assert not gram[:, :, 2].any()
    assert bool((gram[0, :, 0].diagonal() > 0).all())


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.Conv2d(128, 8, 3, padding=1), IntegerLagMoments),
        (nn.Conv2d(64, 8, 3, padding=1), LagMoments),
        (nn.Conv2d(32, 8, 3, stride=2), IntegerColumnMoments),
        (nn.Conv2d(16, 8, 3, stride=2), UnfoldMoments),
        (nn.Conv2d(256, 8, 1), IntegerColumnMoments),
        (nn.Conv2d(128, 8, 1), DenseMoments),
        (nn.Linear(512, 8), IntegerColumnMoments),
        (nn.Conv2d(256, 8, 3, padding=1, groups=2), UnfoldMoments),
    ],
    ids=str,
)
def test_wide_layers_are_summed_in_integers(layer: nn.Module, kind: type, monkeypatch: pytest.MonkeyPatch):
    assert isinstance(moments_for(layer), kind)
    monkeypatch.setattr(integer_moments, "levels", lambda: 0)
    assert not integers_are_faster(layer)
    assert isinstance(moments_for(layer), LagMoments | DenseMoments | UnfoldMoments)
    assert not isinstance(moments_for(layer), IntegerLagMoments)
