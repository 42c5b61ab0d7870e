from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edged.execution.build import build_graph
from edged.execution.placement import Placement, head_parameters, place
from edged.execution.ranges import RangePolicy, choose_range
from edged.execution.selection import NEEDED, TRIED, Policies, Ranges, choose_policies, first_policies, kinds_of
from tests.support.executions import histograms, images, network

RESNET, YOLO = network("option A"), network("yolov5")


def placed(model: nn.Module) -> Placement:
    graph = build_graph(model)
    return place(graph, head_parameters(graph))


PLACEMENT = placed(YOLO)


def test_kinds_of_a_resnet() -> None:
    kinds = kinds_of(placed(RESNET))
    assert kinds["x"] == "other"
    assert kinds["relu"] == "layer"
    assert {kinds[name] for name in kinds if name.startswith("layer1_0_bn")} == {"layer"}
    assert sorted(set(kinds.values())) == ["layer", "other", "sum"]


def test_kinds_of_a_detector() -> None:
    kinds = kinds_of(placed(YOLO))
    assert kinds["model_0_bn"] == "pre-activation"
    assert kinds["model_0_act"] == "activation"
    assert {kind for name, kind in kinds.items() if "cat" in name} == {"sum"}


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_the_choice_is_never_worse_than_the_start(seed: int) -> None:
    tried: list[float] = []

    def error(policies: Policies, limit: float = math.inf) -> float:
        tried.append(random.Random(f"{seed} {sorted(policies.items())}").random())
        return tried[-1]

    chosen = choose_policies(PLACEMENT, error)
    assert chosen.keys() == set(PLACEMENT.values)
    least = error(chosen)
    assert least <= tried[0]
    assert least * NEEDED <= min(tried)


def test_a_policy_that_lowers_the_error_by_little_is_not_taken() -> None:
    start = first_policies(PLACEMENT)
    assert choose_policies(PLACEMENT, lambda policies, _: 1.0 if policies == start else 0.96) == start
    assert choose_policies(PLACEMENT, lambda policies, _: 1.0 if policies == start else 0.94) != start


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_an_error_that_stops_at_its_limit_changes_no_choice(seed: int) -> None:
    def whole(policies: Policies, limit: float) -> float:
        return random.Random(f"{seed} {sorted(policies.items())}").random()

    def stopped(policies: Policies, limit: float) -> float:
        return min(whole(policies, limit), limit)

    assert choose_policies(PLACEMENT, stopped) == choose_policies(PLACEMENT, whole)


def test_every_policy_of_every_kind_is_tried() -> None:
    placement = placed(YOLO)
    wanted = {"pre-activation": RangePolicy.MINMAX, "activation": RangePolicy.MSE, "sum": RangePolicy.PERCENTILE}
    kinds = kinds_of(placement)

    def wrong(policies: Policies, limit: float = math.inf) -> float:
        return sum(wanted.get(kinds[name], policy) is not policy for name, policy in policies.items())

    chosen = choose_policies(placement, wrong)
    assert wrong(chosen) == 0
    assert wrong(first_policies(placement)) > 0
    assert all(policy in TRIED[kinds[name]] for name, policy in chosen.items())


def test_the_first_policies_stay_where_none_is_better() -> None:
    placement = placed(RESNET)
    assert choose_policies(placement, lambda *_: 1.0) == first_policies(placement)


def test_ranges_follow_the_policies() -> None:
    seen = histograms(RESNET, images(RESNET, 2))
    ranges = Ranges(seen, 8)
    for policy in (RangePolicy.MSE, RangePolicy.PERCENTILE, RangePolicy.MSE):
        policies = {"x": RangePolicy.MINMAX, "relu": policy}
        assert ranges.of(policies) == {name: choose_range(seen[name], policy) for name, policy in policies.items()}
    assert ranges.of({"relu": RangePolicy.MSE}) != ranges.of({"relu": RangePolicy.PERCENTILE})


def test_each_range_is_searched_once() -> None:
    seen = histograms(RESNET, images(RESNET, 2))
    ranges = Ranges(seen, 8)
    found = ranges.of({"relu": RangePolicy.MSE})
    seen["relu"].update(images(RESNET, 1) * 100)
    assert ranges.of({"relu": RangePolicy.MSE}) == found
