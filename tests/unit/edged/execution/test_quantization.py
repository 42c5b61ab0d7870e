from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ArtifactError
from edged.execution.grids import ActivationGrid, ActivationScheme
from edged.execution.quantization import ActivationQuantization
from edged.spec import PRECISIONS

ENDS = st.tuples(st.floats(-1e6, 0), st.floats(0, 1e6))
GOOD = {"bits": 8, "ranges": {"x": [-1.5, 2.0]}, "float_layers": ["fc.weight"]}


@given(st.dictionaries(st.text(max_size=8), ENDS, max_size=5), st.lists(st.text(max_size=8), max_size=3))
def test_what_is_written_is_read_back(ranges: dict[str, tuple[float, float]], layers: list[str]) -> None:
    for silu in PRECISIONS:
        written = ActivationQuantization(8, ranges, tuple(layers), tuple(layers[:1]), silu)
        assert ActivationQuantization.from_dict(json.loads(json.dumps(written.to_dict()))) == written


@pytest.mark.parametrize("scheme", ActivationScheme)
def test_grids_span_the_ranges_in_the_codes_of_the_scheme(scheme: ActivationScheme) -> None:
    grids = ActivationQuantization(8, {"x": (-1.5, 2.0), "y": (0.0, 6.0)}).grids(scheme)
    assert grids == {
        "x": ActivationGrid.spanning(-1.5, 2, scheme=scheme),
        "y": ActivationGrid.spanning(0, 6, scheme=scheme),
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 4}, "activations have 4 bits; this edged reads 8"),
        ({"bits": None}, "activations have None bits"),
        ({"ranges": []}, "this edged reads 8, with ranges"),
        ({"float_layers": None}, "a list of layers"),
        ({"float_layers": [3]}, r"float_layers has value \[3\]; need names"),
        ({"silu": "half"}, "silu has value 'half'; need integer or float"),
        ({"silu": None}, "silu has value None"),
        ({"more": 1}, "need bits, ranges and float_layers"),
        *(
            ({"ranges": {"x": ends}}, "the range of activation 'x' has value")
            for ends in (None, [], [0], [0, 1, 2], ["0", 1], [1, 2], [-2, -1], [0, math.inf], [math.nan, 0], [True, 1])
        ),
    ],
)
def test_damaged_ranges_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        ActivationQuantization.from_dict(GOOD | changes)


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_refused(key: str) -> None:
    with pytest.raises(ArtifactError, match="need bits, ranges and float_layers"):
        ActivationQuantization.from_dict({name: value for name, value in GOOD.items() if name != key})


def test_artifacts_from_before_layers_were_kept_in_float_keep_none() -> None:
    read = ActivationQuantization.from_dict(GOOD)
    assert (read.in_float, read.silu) == ((), "integer")


@pytest.mark.parametrize("layers", [None, "fc", [3]])
def test_damaged_names_of_kept_layers_are_refused(layers: object) -> None:
    with pytest.raises(ArtifactError, match=r"in_float has value .*; need names"):
        ActivationQuantization.from_dict({**GOOD, "in_float": layers})
