"""The description of a generation, from a whole and from a damaged artifact."""

from __future__ import annotations

from typing import Any

import pytest

from edged.json_document import MALFORMED
from service.daemon.live_description import describe

MANIFEST = {
    "quantization": {"bits": 4},
    "architecture": {"name": "resnet18"},
    "source": {"name": "best.pt", "sha256": "ab" * 32},
    "finished_at": "2026-01-01T00:00:00+00:00",
}
REPORT = {
    "totals": {"agreement": 95, "held_out_images": 20, "artifact_bytes": 1000, "serve": {"precision": "integer"}},
    "layers": [{"name": "conv1", "bits": 4, "relative_loss": 0.25}],
}


def test_what_pages_show() -> None:
    found = describe(MANIFEST, REPORT)
    assert (found["file_name"], found["bits"], found["precision"]) == ("best.pt", 4, "integer")
    assert found["agreement"] == 95.0
    assert found["layers"] == [{"name": "conv1", "bits": 4, "relative_loss": 0.25}]
    assert found["figures"] == [("agreement", "95.00 % of 20 held-out images")]
    assert (found["weights"], found["reading"]) == (None, None)
    bare = describe(MANIFEST, {"totals": {}, "layers": []})
    assert (bare["agreement"], bare["artifact_bytes"], bare["precision"]) == (None, None, None)


def test_which_weights_were_taken_and_what_was_assumed() -> None:
    taken = {"weights": "averaged", "key": "ema", "prefix": "", "left_out": ["a"], "assumptions": ["no max-pooling"]}
    found = describe(MANIFEST, {**REPORT, "totals": {"checkpoint": taken}})
    assert found["weights"] == "averaged, key 'ema', 1 other tensors left out"
    assert found["reading"] == "assumed: no max-pooling"


@pytest.mark.parametrize(
    ("manifest", "report"),
    [
        ({**MANIFEST, "quantization": {"bits": "4"}}, REPORT),
        ({**MANIFEST, "quantization": {"bits": "any"}}, REPORT),
        ({**MANIFEST, "quantization": {"bits": True}}, REPORT),
        ({**MANIFEST, "source": None}, REPORT),
        ({}, REPORT),
        (MANIFEST, {}),
        (MANIFEST, {**REPORT, "layers": [{"name": "a", "relative_loss": None}]}),
        (MANIFEST, {**REPORT, "layers": [{"name": "a", "relative_loss": 10**400}]}),
        (MANIFEST, {**REPORT, "totals": {"artifact_bytes": 10**400}}),
        (MANIFEST, {**REPORT, "totals": {"agreement": "x"}}),
        (MANIFEST, {**REPORT, "totals": {"checkpoint": [3]}}),
        (MANIFEST, {**REPORT, "totals": {"checkpoint": {"readings": 3}}}),
    ],
)
def test_damage_is_an_error_of_known_kinds(manifest: dict[str, Any], report: dict[str, Any]) -> None:
    with pytest.raises(MALFORMED):
        describe(manifest, report)
