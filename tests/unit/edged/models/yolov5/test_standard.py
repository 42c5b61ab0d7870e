import pytest
import torch

from edged.errors import ArchitectureError
from edged.models.yolov5.network import YoloV5, check_sizes
from edged.models.yolov5.plan import Plan
from edged.models.yolov5.standard import SIZES, name_of, standard
from tests.support.yolov5_samples import tiny_plan

COCO = tuple(f"class {index}" for index in range(80))


# Parameters of the release, before its BatchNorms are folded; in millions from the table of sizes.
@pytest.mark.parametrize(
    ("size", "count", "millions"),
    [
        ("n", 1_872_157, 1.87),
        ("s", 7_235_389, 7.2),
        ("m", 21_190_557, 21.2),
        ("l", 46_563_709, 46.6),
        ("x", 86_749_405, 86.7),
        ("n6", 3_246_940, 3.2),
        ("s6", 12_626_620, 12.6),
        ("m6", 35_731_932, 35.7),
        ("l6", 76_770_172, 76.8),
        ("x6", 140_794_780, 140.8),
    ],
)
def test_parameter_counts_are_the_published_ones(size: str, count: int, millions: float):
    plan = standard(size, COCO)
    with torch.device("meta"):
        model = YoloV5(plan)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == count
    assert counted / 1e6 == pytest.approx(millions, abs=0.051)
    check_sizes(model, plan, 3)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_their_names_and_survive_json(size: str):
    plan = standard(size, ("a", "b"))
    assert name_of(plan) == f"yolov5{size}"
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.strides() == ((8, 16, 32, 64) if size.endswith("6") else (8, 16, 32))


def test_rows_of_their_own_have_no_size():
    assert name_of(tiny_plan()) == "yolov5"


def test_an_unknown_size_is_refused():
    with pytest.raises(ArchitectureError, match="no size 'h'; choose one of n, s, m"):
        standard("h", COCO)
