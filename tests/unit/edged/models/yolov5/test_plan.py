import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ArchitectureError
from edged.models.yolov5.plan import Plan, Row, parse_anchors, parse_names, parse_rows
from edged.models.yolov5.standard import standard
from tests.support.yolov5_samples import ANCHORS, BACKBONE, HEAD, tiny_plan

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.sampled_from(["Conv", "C3", "None", "nc", "x"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def test_rows_count_from_the_start():
    rows = parse_rows([*BACKBONE, *HEAD])
    assert rows[0] == Row((-1,), 1, "Conv", (32, 6, 2, 2))
    assert rows[6] == Row((5,), 1, "nn.Upsample", (None, 2, "nearest"))
    assert rows[7].sources == (6, 2)
    assert rows[-1] == Row((8, 4), 1, "Detect", ())


def test_multiples_are_those_of_the_paper():
    plan = standard("n", ("a",))
    assert [plan.repeats(row) for row in plan.rows if row.block == "C3"] == [1, 2, 3, 1, 1, 1, 1, 1]
    assert [plan.channels(row) for row in plan.rows[:4]] == [16, 32, 32, 64]


def test_width_is_rounded_up_to_eight():
    plan = Plan(1.0, 0.3, tiny_plan().rows, tiny_plan().anchors, ("a",))
    assert [plan.channels(row) for row in plan.rows if row.block == "Conv"] == [16, 16, 24, 16]  # 9.6, 9.6, 19.2, 9.6


def test_shapes_follow_strides_and_channels():
    shapes = tiny_plan().shapes()
    assert [(shape.channels, shape.stride) for shape in shapes] == [
        *((16, 2), (16, 4), (16, 4), (32, 8), (32, 8), (16, 8), (16, 4), (32, 4), (16, 4))
    ]
    assert tiny_plan().strides() == (4, 8)


def test_a_plan_survives_json():
    plan = tiny_plan()
    data = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(data) == plan
    assert data["strides"] == [4, 8]
    with pytest.raises(ArchitectureError, match="missing or unknown key 'rows'"):
        Plan.from_dict({key: value for key, value in data.items() if key != "rows"})


def test_kernels_of_spp_survive_json():
    rows = parse_rows([[-1, 1, "SPP", [32, [5, 9, 13]]], [[0], 1, "Detect", []]])
    plan = Plan(1.0, 1.0, rows, parse_anchors([[[1, 1]]]), ("a",))
    assert plan.rows[0].arguments == (32, (5, 9, 13))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "C3x", [32]], r"row 1 of the yaml has the block 'C3x', which edged does not know; it knows Conv, "),
        ([-1, 1, ["Conv"], [32]], "has the block 'a list'"),
        ([-1, 0, "Conv", [32]], "repeats its block '0' times"),
        ([-1, True, "Conv", [32]], "repeats its block 'True' times"),
        ([-1, 10_000, "Conv", [32]], "repeats its block '10000' times"),
        ([-2, 1, "Conv", [32]], r"\(Conv\) cannot read rows \[-1\]"),
        ([1, 1, "Conv", [32]], r"cannot read rows \[1\]"),
        ([[-1, 0], 1, "Conv", [32]], r"\(Conv\) cannot read rows \[0, 0\]"),
        ([[], 1, "Concat", [1]], "reads 'a list'"),
        (["-1", 1, "Conv", [32]], "reads '-1'"),
        ([-1, 1, "Conv", []], "gives Conv 0 arguments; it takes channels, kernel, stride, padding, groups"),
        ([-1, 1, "Conv", [32, 3, 1, None, 1, 2]], "gives Conv 6 arguments"),
        ([-1, 1, "Conv", [32, 0]], "gives Conv kernel '0', which cannot be"),
        ([-1, 1, "Conv", [1 << 30]], "gives Conv channels '1073741824'"),
        ([-1, 1, "Conv", ["__import__('os')"]], "gives Conv channels"),
        ([-1, 1, "Conv", 32], "gives Conv a int, not a list"),
        ([-1, 1, "C3", [32, 1]], "gives C3 shortcut '1'"),
        ([-1, 1, "nn.Upsample", ["None", 2, "bilinear"]], "gives nn.Upsample mode 'bilinear'"),
        ([-1, 1, "nn.Upsample", ["None"]], "gives nn.Upsample 1 arguments"),
        ([-1, 1, "Concat", [2]], "gives Concat dimension '2'"),
        ([-1, 1, "SPP", [32, []]], "gives SPP kernels"),
        ("row", "row 1 of the yaml is a str"),
    ],
)
def test_the_fault_of_a_row_is_named(row, message):
    with pytest.raises(ArchitectureError, match=message):
        parse_rows([[-1, 1, "Conv", [32]], row])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*BACKBONE, *HEAD[:-1]], r"has Detect in rows \[\] of 9; it must be the last"),
        ([*BACKBONE, *HEAD, *HEAD[-1:]], r"has Detect in rows \[9, 10\] of 11"),
        ([*BACKBONE, *HEAD[:-1], [[8], 1, "Detect", []]], "anchors are for 2 levels, Detect reads 1"),
    ],
)
def test_detect_must_be_the_last_row(rows, message):
    with pytest.raises(ArchitectureError, match=message):
        Plan(0.33, 0.5, parse_rows(rows), parse_anchors(ANCHORS), ("a",))


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (7, [[-1, 4], 1, "Concat", [1]], r"row 7 of the yaml joins maps of strides \[4, 8\]"),
        (6, [-1, 1, "nn.Upsample", ["None", 3, "nearest"]], "row 6 of the yaml scales a map of stride 8 by 3"),
    ],
)
def test_maps_must_fit_together(row, change, message):
    rows = copy.deepcopy([*BACKBONE, *HEAD])
    rows[row] = change
    with pytest.raises(ArchitectureError, match=message):
        Plan(0.33, 0.5, parse_rows(rows), parse_anchors(ANCHORS), ("a",)).strides()


@pytest.mark.parametrize("multiple", [0.0, -1.0, 9.0, float("nan"), float("inf")])
def test_impossible_multiples_are_refused(multiple):
    with pytest.raises(ArchitectureError, match="width_multiple"):
        Plan(1.0, multiple, tiny_plan().rows, tiny_plan().anchors, ("a",))


@pytest.mark.parametrize(
    ("value", "names"), [(["a", "b"], ("a", "b")), ({1: "b", 0: "a"}, ("a", "b")), ([0, 1], ("0", "1"))]
)
def test_names_come_as_a_list_or_a_dict(value, names):
    assert parse_names(value) == names


@pytest.mark.parametrize(
    "value", [None, "ab", {0: "a", 2: "b"}, {"0": "a", 0: "b"}, {10**5000: "a"}, [None], ["x" * 201], [["a"]]]
)
def test_other_names_are_refused(value):
    with pytest.raises(ArchitectureError, match="class name"):
        parse_names(value)


@given(ANYTHING)
def test_any_yaml_is_parsed_or_rejected(value):
    for parse in (parse_rows, parse_anchors, parse_names):
        try:
            parse(value)
        except ArchitectureError as error:
            assert "\n" not in str(error)  # noqa: PT017 - any value may also pass


@given(st.lists(st.tuples(st.integers(-2, 9), st.integers(0, 4), st.sampled_from(["Conv", "C3", "Focus"]), ANYTHING)))
def test_rows_that_pass_can_be_laid_out_or_are_refused(entries):
    rows = [[source, repeats, block, arguments] for source, repeats, block, arguments in entries]
    try:
        plan = Plan(1.0, 1.0, parse_rows([*rows, [[-1], 1, "Detect", []]]), parse_anchors([[[1, 1]]]), ("a",))
        shapes = plan.shapes()
    except ArchitectureError:
        return
    assert len(shapes) == len(rows)
