from service.reporting.candidates import HEAD, Candidate, candidates, kept_in_float, served_by
from tests.support import reports

TOTALS = {"candidates": reports.candidates("conv1"), "serve": {"engine": "onnxruntime", "precision": "integer"}}


def test_a_candidate_has_a_text_for_each_column():
    serving, refused = candidates(TOTALS)
    assert serving == (
        *("onnxruntime", "integer, 1 in float", "4.53 ms", "95.00 %", "86.25 % (drop +0.75)", "12.0 MiB", "serves"),
    )
    assert refused == ("torch", "float", "", "", "", "", "conv1")
    assert len(HEAD) == len(Candidate._fields)


def test_a_candidate_in_a_line():
    serving, refused = candidates(TOTALS)
    assert serving.name == "onnxruntime, integer, 1 in float"
    assert serving.description == ("4.53 ms, agreement 95.00 %, accuracy 86.25 % (drop +0.75), 12.0 MiB: serves")
    assert refused.description == "conv1"
    (gentle,) = candidates({"candidates": [{"engine": "onnxruntime", "precision": "integer", "silu": "float"}]})
    assert gentle.name == "onnxruntime, integer, SiLU in float"


def test_verdicts():
    def verdict(**entry):
        (candidate,) = candidates({"candidates": [{"engine": "torch", "precision": "float", **entry}]})
        return candidate.verdict

    assert verdict(chosen=True, ms=1.0) == "serves"
    assert verdict(chosen=True) == "serves, not timed"
    assert verdict(chosen=False, ms=2.0) == "not faster"
    assert verdict(refused="no room") == "no room"


def test_a_candidate_that_takes_hardly_less_time_is_about_as_fast():
    times = [{"ms": 1.0, "chosen": True}, {"ms": 0.98}, {"ms": 1.02}]
    assert [each.verdict for each in candidates({"candidates": times})] == ["serves", "about as fast", "not faster"]


def test_what_serves():
    assert served_by(TOTALS) == "onnxruntime, integer, 1 in float"
    assert served_by({"serve": TOTALS["serve"]}) == "onnxruntime, integer"
    assert kept_in_float(TOTALS) == ["conv1"]
    assert (candidates({}), served_by({}), kept_in_float({})) == ([], None, [])
    assert served_by({"serve": {"engine": "torch"}}) is None
