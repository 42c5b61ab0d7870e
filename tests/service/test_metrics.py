import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.metrics import Metrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
FORBIDDEN_LABELS = {"pid", "path", "sha256", "file", "id"}


@pytest.fixture
def metrics(tmp_path):
    return Metrics(CollectorRegistry(), "1.2.3", tmp_path)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def declared(metrics):
    """Name -> (type, labels) of every metric, also of those that have no sample yet."""
    found = {}
    for collector in metrics.registry._collector_to_names:
        for family in collector.collect():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, tuple(getattr(collector, "_labelnames", ())))
    return found


def documented():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \| [^|]+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def test_every_metric_is_documented_with_its_type_and_labels(metrics):
    assert documented() == declared(metrics)


def test_the_document_is_in_order():
    names = list(documented())
    assert names == sorted(names)


def test_names_follow_the_conventions(metrics):
    for name, (kind, labels) in declared(metrics).items():
        assert name.startswith(("edged_", "process_")), name
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            assert name.endswith("_seconds"), name
        assert not set(labels) & FORBIDDEN_LABELS


def test_the_live_model_replaces_the_one_before(metrics):
    labels = {"digest": "ab" * 6, "bits": "4", "runtime": "torch"}
    metrics.show_model("m", 1, "ab" * 32, 4, "torch")
    metrics.show_model("n", 1, "ab" * 32, 4, "torch")
    metrics.show_model("m", 2, "ab" * 32, 4, "torch")
    assert value(metrics, "edged_model_info", model="m", generation="1", **labels) is None
    assert value(metrics, "edged_model_info", model="m", generation="2", **labels) == 1
    assert value(metrics, "edged_model_info", model="n", generation="1", **labels) == 1


def test_layers_of_the_generation_before_vanish(metrics):
    metrics.show_layers("m", [("conv1", 0.1), ("fc", 0.2)])
    metrics.show_layers("m", [("conv1", 0.3)])
    assert value(metrics, "edged_layer_relative_loss", model="m", layer="conv1") == 0.3
    assert value(metrics, "edged_layer_relative_loss", model="m", layer="fc") is None


def test_a_forgotten_model_leaves_its_counters(metrics):
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


def test_a_state_folder_that_is_gone_does_not_break_the_rest(tmp_path):
    metrics = Metrics(CollectorRegistry(), "1", tmp_path / "gone")
    assert b"edged_state_disk_free_bytes NaN" in generate_latest(metrics.registry)


def test_what_was_observed(metrics):
    def told(**changes):
        metrics.note_observed("m", {"capture": None, "drift": None, "drift_images": 0, **changes})
        names = ("edged_calibration_drift", "edged_calibration_drift_images")
        return tuple(value(metrics, name, model="m") for name in names)

    assert told(capture="stored") == (None, None)
    assert value(metrics, "edged_captured_images_total", model="m", result="stored") == 1
    assert told(drift_images=127) == (None, 127)
    assert told(drift=0.25, drift_images=128) == (0.25, 128)
    assert told(capture="stored") == (0.25, 128)
    assert told(drift_images=1) == (None, 1)  # of the next generation
