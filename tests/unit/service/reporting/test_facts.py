import pytest

from service.reporting.facts import (
    bits_text,
    facts,
    figures,
    kernels,
    layers,
    levels,
    logits,
    memory,
    outcome,
    reading,
    stages,
    worst_first,
)
from tests.support.reports import data_of


def test_the_measurements_of_a_classifier():
    totals = {
        "held_out_images": 20,
        "agreement": 95.0,
        "fp32": {"top1": 80.0, "top5": 99.0},
        "quantized": {"top1": 79.5, "top5": 99.0},
    }
    assert list(figures(totals)) == [
        ("top-1", "79.50 % (full precision 80.00 %, drop +0.50)"),
        ("agreement", "95.00 % of 20 held-out images"),
    ]


def test_the_measurements_of_a_detector():
    totals = {
        "held_out_images": 13,
        "agreement": 97.254,
        "boxes": {"fp32": 100, "quantized": 98},
        "fp32": {"map50": 53.0, "map50_95": 34.0},
        "quantized": {"map50": 53.2, "map50_95": 33.5},
    }
    assert list(figures(totals)) == [
        ("mAP50", "53.20 % (full precision 53.00 %, drop -0.20)"),
        ("mAP50-95", "33.50 % (full precision 34.00 %, drop +0.50)"),
        ("agreement", "97.25 % of 98 boxes (full precision 100) in 13 held-out images"),
    ]


def test_the_weights_that_were_taken_are_named():
    def weights(**taken):
        data = data_of("x")
        data["report"] = {"totals": {"checkpoint": taken}} if taken else {}
        return dict(facts(data)).get("Weights")

    taken = {"key": "state_dict_ema", "prefix": "module.", "weights": "averaged", "left_out": ["n_averaged"]}
    assert weights(**taken) == "averaged, key 'state_dict_ema', prefix 'module.', 1 other tensors left out"
    assert weights(key="", prefix="", weights="last", left_out=[]) == "last"
    assert weights() is None


def test_the_reading_is_named_with_its_figures():
    tried = [
        {"reading": "no max-pooling after the 3x3 stem", "correct": 7, "taken": False},
        {"reading": "max-pooling after the 3x3 stem", "correct": 60, "taken": True},
    ]
    found = {"images": 64, "decided": True, "tried": tried}
    assert reading({"checkpoint": {"readings": found, "assumptions": []}}) == (
        "max-pooling after the 3x3 stem: 60 of 64 labeled images right (no max-pooling after the 3x3 stem: 7)"
    )
    unclear = reading({"checkpoint": {"readings": {**found, "decided": False}, "assumptions": ["this"]}})
    assert unclear is not None
    assert unclear.endswith("no max-pooling after the 3x3 stem: 7; no clear difference); assumed: this")
    assert reading({"checkpoint": {"assumptions": ["this", "that"]}}) == "assumed: this; assumed: that"
    assert reading({"checkpoint": {}}) is None
    assert reading({}) is None


def test_missing_measurements_are_left_out():
    assert list(figures({"agreement": 100, "held_out_images": 8})) == [("agreement", "100.00 % of 8 held-out images")]
    assert list(figures({})) == []


def test_an_outcome_names_the_problem_and_the_update_that_made_the_files():
    ended = outcome(data_of())
    assert (ended.id, ended.state, ended.problem, ended.is_reused) == (7, "COMMITTED", None, False)
    rejected = {**data_of()["update"], "state": "REJECTED", "code": "checkpoint", "reason": "empty"}
    assert outcome(data_of(update=rejected, course=None)).problem == "checkpoint: empty"
    again = outcome(data_of(course={**data_of()["course"], "update": 5}))
    assert (again.made_by, again.is_reused) == (5, True)


def test_stages_have_a_start_and_an_end():
    assert [(stage.name, stage.start_s, stage.end_s) for stage in stages(data_of())] == [
        ("settle", 0.0, 1.0),
        ("quantize", 3.0, 7.0),
    ]


def test_memory_has_a_peak_for_each_part_of_the_time_with_samples():
    used = memory(data_of())
    assert (used.span_s, used.peak_bytes) == (5.0, 300 << 20)
    assert list(used.peaks(10)) == [(0.5, 100 << 20), (5.0, 300 << 20)]
    assert memory(data_of(course=None)) is None
    assert memory(data_of(course={**data_of()["course"], "memory": []})) is None


def test_layers_are_in_the_order_of_the_network_or_of_their_loss():
    found = layers(data_of())
    assert [(layer.name, layer.bits, layer.size) for layer in found] == [("plain", 4, "8 x 27"), ("fc", 8, "8 x 27")]
    assert [layer.name for layer in worst_first(found[::-1])] == ["plain", "fc"]
    assert layers(data_of(report=None)) == []
    with pytest.raises(KeyError, match="relative_loss"):
        layers(data_of(report={"layers": [{"name": "incomplete"}]}))


def test_what_became_of_the_logits_is_told():
    assert logits({}) is None
    assert "does not help" in str(logits({"corrected_share": None}))
    text = logits({"corrected_share": 0.0512})
    assert text is not None
    assert "5.1 % lower" in text
    report = {**data_of()["report"], "totals": {"bits": 2, "corrected_share": 0.0512}}
    assert ("Logits", text) in facts(data_of(report=report))


def test_levels_for_storage_are_named():
    assert levels({}) is None
    text = levels({"levels": "power"})
    assert text == "power, for storage only: computed in float"
    report = {**data_of()["report"], "totals": {"bits": 4, "levels": "power"}}
    assert ("Levels", text) in facts(data_of(report=report))


def test_exact_kernels_are_named_with_what_avoids_them():
    assert kernels({"exact_kernels": False}) is None
    assert kernels({}) is None
    text = kernels({"exact_kernels": True})
    assert text is not None
    assert "--bits 7" in text
    report = {**data_of()["report"], "totals": {"bits": 8, "exact_kernels": True}}
    assert ("Integer kernels", text) in facts(data_of(report=report))


def test_bits_of_each_layer_are_shown_by_their_range_and_mean():
    totals = {"bits": "auto", "layer_bits": {"least": 2, "most": 6, "mean": 3.456}, "first_bits": 6, "small_bits": None}
    assert bits_text({**totals, "activation_bits": 8}) == "auto: 2 to 6, 3.46 on average, activations 8"
    assert bits_text({"bits": "auto"}) == "auto"  # the quantization of a manifest
