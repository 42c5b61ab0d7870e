from service.reporting.text import summary
from tests.support.reports import data_of, detections


def test_the_report_of_a_classifier():
    lines = summary(data_of(), "/x/report.html").splitlines()
    assert lines[:2] == ["update 7 of m: COMMITTED", "  plain"]
    assert "  Agreement                  95.00 % of 20 held-out images" in lines
    assert "  Served by                  onnxruntime, integer, 1 in float" in lines
    assert "  Layers in float            plain" in lines
    start = lines.index("candidates to serve")
    assert lines[start + 1].startswith("  onnxruntime, integer, 1 in float  4.53 ms, agreement 95.00 %,")
    assert lines[start + 2].split() == ["torch,", "float", "plain"]
    assert f"  quantize   {' ' * 17}{'#' * 23} 4.00 s" in lines
    assert "  plain                    2.00e-03 at 4 bits" in lines
    assert "  plain (labeled plain): plain 75.0 % -> class 1 75.0 %" in lines
    assert lines[-1] == "page: /x/report.html"


def test_the_report_of_a_detector():
    text = summary(data_of(predictions=detections()), None)
    assert "  plain: 2 boxes (plain 90.0 %, plain 40.0 %) -> 1 box (plain 90.0 %)" in text
    assert "page:" not in text


def test_memory_is_shown_in_tenths_of_the_time():
    lines = summary(data_of(), None).splitlines()
    start = lines.index("memory of the worker")
    assert [line.split()[-2:] for line in lines[start + 1 : start + 3]] == [["100.0", "MiB"], ["300.0", "MiB"]]


def test_bits_that_were_chosen_are_listed_with_what_spoke_for_them():
    layers = [
        {"name": "conv1", "bits": 8, "given": True, "weights": 9, "errors": {"8": 0.5}},
        {"name": "fc", "bits": 3, "given": False, "weights": 9, "errors": {"2": 0.02, "3": 0.004, "4": 0.001}},
    ]
    report = {**data_of()["report"], "chosen_bits": {"layers": layers, "tries": [{"bytes": 900, "drop": 0.5}]}}
    lines = summary(data_of(report=report), None).splitlines()
    start = lines.index("bits of the layers, with the error of the outputs")
    assert [line.split(maxsplit=1) for line in lines[start + 1 : start + 4]] == [
        ["conv1", "8 bits: given by the settings"],
        ["fc", "3 bits: error 4.00e-03, with one bit less 2.00e-02, with one bit more 1.00e-03"],
        ["tried:", "900 bytes lose +0.50"],
    ]
    assert "bits of the layers, with the error of the outputs" not in summary(data_of(), None)


def test_unknown_facts_are_left_out():
    update = {**data_of()["update"], "state": "REJECTED", "code": "checkpoint", "reason": "empty", "stages": {}}
    nothing = {"report": None, "manifest": None, "predictions": None, "course": None, "timeline": [], "update": update}
    assert summary(data_of(**nothing), None).splitlines() == [
        "update 7 of m: REJECTED",
        "  plain",
        "  checkpoint: empty",
        "  Generation  3",
        "  Checkpoint  1.0 MiB",
        f"  SHA-256     {'ab' * 32}",
    ]
