from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.models import nms
from edged.models.nms import pairwise_iou, suppress


def exact(boxes, scores, classes, iou, limit):
    """As the definition has it, in Python's own numbers."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(classes[index] != classes[other] or overlap(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(index)
    return kept[:limit]


def overlap(a, b) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


# Whole pixels: every area is exact in float32, so that no overlap is on the wrong side of the threshold.
side = st.integers(0, 40)
box = st.tuples(side, side, st.integers(0, 20), st.integers(0, 20)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
entries = st.lists(st.tuples(box, st.integers(0, 8).map(lambda n: n / 8), st.integers(0, 2)), max_size=40)


def columns(items):
    boxes, scores, classes = zip(*items, strict=True) if items else ((), (), ())
    return list(boxes), list(scores), list(classes)


@settings(deadline=None)
@given(entries, st.sampled_from([0.3, 0.45, 0.6, 0.99]), st.integers(1, 50))
def test_suppression_equals_its_definition(items, iou, limit):
    boxes, scores, classes = columns(items)
    tensors = (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes).long(),
    )
    assert suppress(*tensors, iou, limit).tolist() == exact(boxes, scores, classes, iou, limit)


@settings(deadline=None)
@given(entries, st.integers(1, 50))
def test_torchvision_where_it_loads_gives_the_same(items, limit):
    """By a stand-in for torchvision's operator, doing what it is documented to do: it does not load everywhere."""

    def stand_in(boxes, scores, iou):
        return torch.tensor(
            exact(boxes.tolist(), scores.tolist(), [0] * len(scores), iou, len(scores)), dtype=torch.int64
        )

    boxes, scores, classes = columns(items)
    tensors = (
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes).long(),
    )
    expected = suppress(*tensors, 0.45, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "_has_operators", lambda: True)
        patch.setattr(torch.ops, "torchvision", SimpleNamespace(nms=stand_in), raising=False)
        assert torch.equal(suppress(*tensors, 0.45, limit), expected)


@pytest.mark.skipif(not nms._has_operators(), reason="torchvision's compiled operators do not load here")
def test_the_real_torchvision_gives_the_same():
    torch.manual_seed(0)
    corner = torch.rand(2000, 2) * 600
    boxes = torch.cat((corner, corner + torch.rand(2000, 2) * 100), 1)
    scores, classes = torch.rand(2000), torch.randint(0, 5, (2000,))
    with_operators = suppress(boxes, scores, classes, 0.45, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "_has_operators", lambda: False)
        assert torch.equal(suppress(boxes, scores, classes, 0.45, 300), with_operators)


def test_intersection_over_union_of_known_boxes():
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(a, b).tolist() == [[pytest.approx(1 / 7), 1.0, 0.0], [0.0, 0.0, 0.0]]
