import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.models.nms import iou_of, pairwise_iou, suppress


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
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int64)
    assert suppress(*arrays, iou, limit).tolist() == exact(boxes, scores, classes, iou, limit)


def test_intersection_over_union_of_known_boxes():
    a = np.array([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    b = np.array([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(a, b).tolist() == [[pytest.approx(1 / 7), 1.0, 0.0], [0.0, 0.0, 0.0]]


@given(st.lists(st.tuples(box, box), max_size=10))
def test_pairs_of_boxes_overlap_as_in_the_table_of_all(pairs):
    a, b = (np.array([pair[index] for pair in pairs], np.float64).reshape(-1, 4) for index in (0, 1))
    assert iou_of(a, b).tolist() == pairwise_iou(a, b).diagonal().tolist()
    assert iou_of(a, b).tolist() == pytest.approx([overlap(*pair) for pair in pairs])
