import re
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

import service.intake.claim  # noqa: F401 - its errors reject files, too
from edged.errors import RejectedError
from service.journal.states import UPDATE_STAGES
from service.metrics.registry import MAX_REASONS, Metrics
from tests.support.metrics import families
from tests.support.repository import ROOT

DOCUMENT = ROOT / "docs" / "metrics.md"
FORBIDDEN_LABELS = {"pid", "path", "sha256", "file", "id"}


@pytest.fixture
def metrics(tmp_path):
    return Metrics(CollectorRegistry(), "1.2.3", tmp_path)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def declared(metrics):
    """Name -> (type, labels)."""
    return {name: (family.type, labels) for name, (family, labels) in families(metrics).items()}


def rows():
    """Name, type, labels, unit and meaning as the document has them."""
    cell = r" ([^|]*) "
    pattern = rf"^\| `(\w+)` \| (\w+) \|([^|]*)\|{cell}\|{cell}\|$"
    return re.findall(pattern, DOCUMENT.read_text(), re.MULTILINE)


def documented():
    return {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels, _, _ in rows()}


def test_every_metric_is_documented_with_its_type_and_labels(metrics):
    assert documented() == declared(metrics)


def test_the_meaning_in_the_document_begins_with_the_help_text(metrics):
    """The last column begins with the text of # HELP; sentences that need more room follow it."""
    texts = {name: family.documentation for name, (family, _) in families(metrics).items()}
    assert {name: meaning[: len(texts[name])] for name, _, _, _, meaning in rows()} == texts


UNITS = {
    "_timestamp_seconds": "seconds since 1970",
    "_time_seconds": "seconds since 1970",
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_ratio": "0 to 1",
    "_celsius": "degrees Celsius",
    "_hertz": "hertz",
}


def test_the_unit_is_the_one_in_the_name():
    for name, _, _, unit, _ in rows():
        stem = name.removesuffix("_total")
        expected = next((text for suffix, text in UNITS.items() if stem.endswith(suffix)), None)
        if expected is not None:
            assert unit == expected, name
        else:
            assert unit not in UNITS.values(), name


def test_the_document_names_every_stage():
    text = " ".join(DOCUMENT.read_text().split())
    assert f"`stage` is one of {', '.join(UPDATE_STAGES)}." in text


def test_the_document_is_in_order():
    names = list(documented())
    assert names == sorted(names)


def test_names_follow_the_conventions(metrics):
    for name, (kind, labels) in declared(metrics).items():
        assert name.startswith(("edged_", "process_")), name
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_size")), name
        assert not set(labels) & FORBIDDEN_LABELS


def test_the_live_generation_replaces_the_previous_one(metrics):
    labels = {"digest": "ab" * 6, "bits": "4", "runtime": "torch"}
    metrics.show_model("m", 1, "ab" * 32, 4, "torch")
    metrics.show_model("n", 1, "ab" * 32, 4, "torch")
    metrics.show_model("m", 2, "ab" * 32, 4, "torch")
    assert value(metrics, "edged_model_info", model="m", generation="1", **labels) is None
    assert value(metrics, "edged_model_info", model="m", generation="2", **labels) == 1
    assert value(metrics, "edged_model_info", model="n", generation="1", **labels) == 1


def test_layers_of_the_previous_generation_disappear(metrics):
    metrics.show_layers("m", [("conv1", 0.1), ("fc", 0.2)])
    metrics.show_layers("m", [("conv1", 0.3)])
    assert value(metrics, "edged_layer_relative_loss", model="m", layer="conv1") == 0.3
    assert value(metrics, "edged_layer_relative_loss", model="m", layer="fc") is None


def test_counters_of_a_forgotten_model_stay(metrics):
    metrics.queue_length.labels("m").set(3)
    metrics.queue_length.labels("n").set(4)
    metrics.updates.labels("m", "committed", "").inc()
    metrics.forget_model("m")
    metrics.forget_model("m")
    assert value(metrics, "edged_queue_length", model="m") is None
    assert value(metrics, "edged_queue_length", model="n") == 4
    assert value(metrics, "edged_updates_total", model="m", result="committed", reason="") == 1


def test_the_device_and_the_process_are_measured(metrics):
    assert value(metrics, "edged_build_info", version="1.2.3") == 1
    total = value(metrics, "edged_device_memory_total_bytes")
    assert 0 < value(metrics, "edged_device_memory_available_bytes") <= total
    assert value(metrics, "edged_state_disk_free_bytes") > 0
    assert value(metrics, "process_resident_memory_bytes") > 1 << 20


def series(metrics):
    """How many lines a scrape has."""
    return sum(not line.startswith(b"#") for line in generate_latest(metrics.registry).splitlines())


def test_a_configured_model_has_its_counters_from_the_start(metrics):
    metrics.expect_model("m")
    assert value(metrics, "edged_updates_total", model="m", result="committed", reason="") == 0
    assert value(metrics, "edged_updates_total", model="m", result="rolled_back", reason="probation") == 0
    assert value(metrics, "edged_inference_requests_total", model="m", code="500") == 0
    assert value(metrics, "edged_swap_duration_seconds_count", model="m") == 0
    for reason in ("disk", "window", "memory"):
        assert value(metrics, "edged_updates_deferred_total", model="m", reason=reason) == 0
    assert value(metrics, "edged_updates_postponed", model="m", reason="disk") == 0
    metrics.count_update("m", "committed")
    metrics.count_request("m", 200, 0.1)
    before = series(metrics)
    metrics.expect_model("m")  # a model that was removed and comes back
    assert series(metrics) == before
    assert value(metrics, "edged_updates_total", model="m", result="committed", reason="") == 1


def test_an_alert_notices_the_first_rejection_for_any_reason(metrics):
    """increase() does not see a counter that begins at 1."""
    metrics.expect_model("m")
    kinds = [RejectedError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = {kind.code for kind in kinds if kind.__module__.startswith(("edged.", "service."))}
    # Of an image in a request; of a calibration folder, which can be mended; of no file in particular.
    for code in codes - {"image", "calibration", "rejected"}:
        assert value(metrics, "edged_updates_total", model="m", result="rejected", reason=code) == 0, code


@given(st.lists(st.text(), max_size=200))
def test_the_number_of_reasons_is_bounded(reasons):
    metrics = Metrics(CollectorRegistry())
    for reason in reasons + [f"reason{number}" for number in range(300)]:
        metrics.count_update("m", "failed", reason)
        metrics.count_deferral("m", reason)
    found = [s for f in metrics.updates.collect() for s in f.samples if s.name == "edged_updates_total"]
    assert len(found) <= MAX_REASONS + 1
    assert sum(sample.value for sample in found) == len(reasons) + 300
    assert value(metrics, "edged_updates_total", model="m", result="failed", reason="other") > 0
    assert value(metrics, "edged_updates_deferred_total", model="m", reason="other") > 0


@given(st.lists(st.integers(), max_size=200))
def test_the_number_of_status_codes_is_bounded(codes):
    metrics = Metrics(CollectorRegistry())
    for code in codes + list(range(2000)):
        metrics.count_request("m", code, 0.1)
    found = [s for f in metrics.requests.collect() for s in f.samples if s.name == "edged_inference_requests_total"]
    assert len(found) <= len(HTTPStatus) + 1
    assert sum(sample.value for sample in found) == len(codes) + 2000


def test_a_large_network_exports_the_layers_with_the_highest_loss(metrics):
    metrics.show_layers("m", [(f"layer{number}", number / 1000) for number in range(1000)])
    shown = {s.labels["layer"] for f in metrics.layer_relative_loss.collect() for s in f.samples}
    assert shown == {f"layer{number}" for number in range(744, 1000)}


def test_the_number_of_series_stays_the_same_after_the_first_update(metrics):
    """Three models of 300 layers, each updated ten times: the first update creates all series there ever are."""
    counts = []
    for round_number in range(10):
        for model in [f"model{number}" for number in range(3)]:
            metrics.expect_model(model)
            metrics.show_model(model, round_number + 1, f"{round_number:064x}", 4, "torch")
            metrics.show_layers(model, [(f"model.{number}.m.0.cv1.conv", 0.01) for number in range(300)])
            metrics.count_update(model, "committed")
        if round_number in (0, 9):
            counts.append(series(metrics))
    assert counts[0] == counts[1] < 3 * 720


def test_a_missing_state_folder_does_not_break_the_scrape(tmp_path):
    metrics = Metrics(CollectorRegistry(), "1", tmp_path / "gone")
    assert b"edged_state_disk_free_bytes NaN" in generate_latest(metrics.registry)


def test_observations_of_sampled_requests(metrics):
    def after(**changes):
        metrics.note_observed("m", {"capture": None, "drift": None, "drift_images": 0, **changes})
        names = ("edged_calibration_drift", "edged_calibration_drift_images")
        return tuple(value(metrics, name, model="m") for name in names)

    assert after(capture="stored") == (None, None)
    assert value(metrics, "edged_captured_images_total", model="m", result="stored") == 1
    assert after(drift_images=127) == (None, 127)
    assert after(drift=0.25, drift_images=128) == (0.25, 128)
    assert after(capture="stored") == (0.25, 128)
    assert after(drift_images=1) == (None, 1)  # by the next process
    assert after(drift=0.5, drift_images=128) == (0.5, 128)
    metrics.forget_drift("m")
    assert after() == (None, None)
