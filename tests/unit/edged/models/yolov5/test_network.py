import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from edged.calibration.geometry import geometry_of
from edged.errors import ArchitectureError
from edged.models.graph import Program
from edged.models.layers import quantizable_layers
from edged.models.yolov5.network import YoloV5, check_sizes
from edged.models.yolov5.plan import Plan, parse_anchors, parse_rows
from edged.models.yolov5.standard import standard
from tests.support.yolov5_samples import ANCHORS, BACKBONE, HEAD, tiny_model, tiny_plan


def test_rows_read_what_they_say():
    model = tiny_model()
    x = torch.randn(2, 3, 32, 48)
    rows = model.model
    maps = [x]
    for row in rows[:5]:
        maps.append(row(maps[-1]))
    fine = rows[8](torch.cat((rows[6](rows[5](maps[5])), maps[3]), 1))
    with torch.no_grad():
        assert_close(model(x), rows[9]([fine, maps[5]]))
        assert model(x).shape == (2, (8 * 12 + 4 * 6) * 2, 8)


def test_a_row_may_repeat_any_block():
    rows = parse_rows([[-1, 2, "Conv", [16, 3, 2]], [[0], 1, "Detect", []]])
    plan = Plan(1.0, 1.0, rows, parse_anchors([[[1, 1]]]), ("a",))
    assert plan.strides() == (4,)
    assert {"model.0.0.conv.weight", "model.0.1.conv.weight"} < set(YoloV5(plan).state_dict())


def test_older_blocks_can_be_built():
    backbone = [[-1, 1, "Focus", [32, 3]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "SPP", [32, [5, 9, 13]]]]
    rows = parse_rows([*backbone, [-1, 2, "Bottleneck", [32]], [[3], 1, "Detect", []]])
    plan = Plan(1.0, 0.5, rows, parse_anchors([[[1, 1]]]), ("a",))
    model = YoloV5(plan).eval()
    assert plan.strides() == (4,)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 6)
    assert "model.0.conv.conv.weight" in model.state_dict()


def test_groups_that_do_not_divide_are_refused():
    rows = parse_rows([[-1, 1, "Conv", [16, 3, 2, None, 5]], [[0], 1, "Detect", []]])
    with pytest.raises(ArchitectureError, match=r"row 0 of the yaml \(Conv\) cannot be built: in_channels must be div"):
        YoloV5(Plan(1.0, 1.0, rows, parse_anchors([[[1, 1]]]), ("a",)))


def test_maps_that_do_not_meet_are_refused():
    rows = copy.deepcopy([*BACKBONE, *HEAD])
    rows[3] = [-1, 1, "Conv", [64, 2, 2]]  # an even kernel without padding of its own: one pixel more than half
    plan = Plan(0.33, 0.5, parse_rows(rows), parse_anchors(ANCHORS), ("a",))
    with torch.device("meta"):
        model = YoloV5(plan)
    with pytest.raises(ArchitectureError, match=r"cannot run|gives \d+ predictions"):
        check_sizes(model, plan, 3)


@pytest.mark.parametrize("plan", [tiny_plan(), standard("n", ("a",)), standard("n6", ("a",))], ids=["tiny", "n", "n6"])
def test_branches_of_one_input_share_a_cut_and_a_hessian(plan: Plan):
    with torch.device("meta"):
        model = YoloV5(plan)
    program, layers = Program(model), quantizable_layers(model)
    cut_of = {name: cut for cut in program.cuts for name in cut.layers}
    assert sorted(cut_of) == sorted(layers)
    blocks = [f"model.{index}" for index, row in enumerate(plan.rows) if row.block == "C3"]
    assert blocks
    for block in blocks:
        one, other = f"{block}.cv1.conv", f"{block}.cv2.conv"
        assert cut_of[one] is cut_of[other]
        assert geometry_of(layers[one]) == geometry_of(layers[other])


def test_the_last_layers_are_the_heads():
    with torch.device("meta"):
        model = YoloV5(standard("n", ("a",)))
    assert set(Program(model).last_layers) == {f"model.24.m.{level}" for level in range(3)}
    assert not any(layer in Program(model).followers for layer in Program(model).last_layers)


def test_going_from_cut_to_cut_is_running_the_network():
    model, x = tiny_model(), torch.randn(1, 3, 32, 32)
    program, modules, read = Program(model), dict(model.named_modules()), {}
    for name, module in quantizable_layers(model).items():
        module.register_forward_hook(lambda _m, inputs, _y, name=name: read.update({name: inputs[0].clone()}))
    with torch.inference_mode():
        y, expected = model(x), dict(read)
        values, start = {program.input: x}, 0
        for cut in program.cuts:
            values, start = program.run(values, start, cut, modules), cut.index
            assert all(torch.equal(values[cut.source], expected[layer]) for layer in cut.layers)
        assert torch.equal(program.run({program.input: x}, 0, None, modules)["output"], y)


def test_heads_are_plain_convolutions():
    heads = [module for name, module in tiny_model().named_modules() if name.startswith("model.9.m.")]
    assert all(type(head) is nn.Conv2d and head.bias is not None for head in heads)
