from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from edged.errors import MemoryLimitError, UsageError
from edged.progress import SilentListener
from service.comparison.job import FULL_PRECISION, Measurement
from service.comparison.runner import MeasurementError, compare, in_own_process, measurements
from tests.support.comparisons import BASE, Recorder
from tests.support.progress import NotedProgress

SILENT = SilentListener()


def jobs(*methods: str, bits: tuple[int, ...] = (4,), seed: int = 0) -> list[Measurement]:
    return list(measurements(dataclasses.replace(BASE, seed=seed), methods, bits))


def test_full_precision_comes_first_and_nothing_twice():
    found = [(job.method, job.bits) for job in jobs("rtn", "adaround", "rtn", bits=(4, 2, 4))]
    assert found == [(FULL_PRECISION, 32), ("rtn", 4), ("rtn", 2), ("adaround", 4), ("adaround", 2)]


def test_tools_that_know_8_bits_only_are_measured_once():
    assert [(job.method, job.bits) for job in jobs("nncf", bits=(4, 3, 2))][1:] == [("nncf", 8)]


def test_the_folder_has_every_row_in_three_forms(tmp_path: Path):
    out = tmp_path / "a" / "comparison"
    result = compare(jobs("rtn", "adaround"), out, SILENT, Recorder())
    assert [row["method"] for row in result["rows"]] == [FULL_PRECISION, "rtn", "adaround"]
    assert json.loads((out / "comparison.json").read_text()) == result
    table = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    assert [(row["method"], float(row["top1"])) for row in table] == [
        (row["method"], row["score"]["top1"]) for row in result["rows"]
    ]
    assert "adaround" in (out / "comparison.svg").read_text()


def test_a_method_that_fails_is_a_row_with_its_reason(tmp_path: Path):
    result = compare(jobs("rtn", "adaround", "balanced"), tmp_path, SILENT, Recorder("adaround"))
    assert result["rows"][2] == {"method": "adaround", "bits": 4, "error": "out of memory; use fewer images"}
    assert result["rows"][3]["method"] == "balanced"
    assert "out of memory" in (tmp_path / "comparison.csv").read_text()


def test_full_precision_that_cannot_be_measured_fails_the_comparison(tmp_path: Path):
    with pytest.raises(MemoryLimitError):
        compare(jobs("rtn"), tmp_path / "out", SILENT, Recorder(FULL_PRECISION))
    assert not (tmp_path / "out").exists()


def test_rows_of_an_earlier_call_are_kept_and_failed_ones_measured_again(tmp_path: Path):
    compare(jobs("rtn", "adaround"), tmp_path, SILENT, Recorder("adaround"))
    again = Recorder()
    result = compare(jobs("rtn", "adaround", "balanced"), tmp_path, SILENT, again)
    assert again.measured == [(FULL_PRECISION, 32), ("adaround", 4), ("balanced", 4)]
    assert again.labels == ["1/4 full precision", "3/4 adaround 4", "4/4 balanced 4"]
    assert [row["method"] for row in result["rows"]] == [FULL_PRECISION, "rtn", "adaround", "balanced"]
    assert not any("error" in row for row in result["rows"])


def test_rows_are_sorted_by_method_and_bits_whatever_was_measured_first(tmp_path: Path):
    compare(jobs("balanced", "adaround", bits=(2,)), tmp_path, SILENT, Recorder())
    result = compare(jobs("nncf", "rtn", "adaround", bits=(2, 4)), tmp_path, SILENT, Recorder())
    assert [(row["method"], row["bits"]) for row in result["rows"]] == [
        *[(FULL_PRECISION, 32), ("rtn", 4), ("rtn", 2), ("adaround", 4), ("adaround", 2), ("balanced", 2), ("nncf", 8)]
    ]


def test_rows_with_another_number_of_steps_are_measured_again(tmp_path: Path):
    compare(jobs("rtn", "adaround"), tmp_path, SILENT, Recorder())
    fewer = [dataclasses.replace(job, iterations=100) for job in jobs("rtn", "adaround")]
    again, once_more = Recorder(), Recorder()
    compare(fewer, tmp_path, SILENT, again)
    result = compare(fewer, tmp_path, SILENT, once_more)
    assert again.measured == [(FULL_PRECISION, 32), ("adaround", 4)]
    assert once_more.measured == [(FULL_PRECISION, 32)]
    assert [row["method"] for row in result["rows"]] == [FULL_PRECISION, "rtn", "adaround"]


def test_a_folder_that_tells_more_of_its_comparison_is_refused(tmp_path: Path):
    compare(jobs("rtn"), tmp_path, SILENT, Recorder())
    path = tmp_path / "comparison.json"
    stored = json.loads(path.read_text())
    stored["identity"]["preprocessing"] = "of a later version"
    path.write_text(json.dumps(stored))
    with pytest.raises(UsageError, match="another preprocessing"):
        compare(jobs("rtn"), tmp_path, SILENT, Recorder())


def test_a_folder_of_another_comparison_is_refused(tmp_path: Path):
    compare(jobs("rtn"), tmp_path, SILENT, Recorder())
    with pytest.raises(UsageError, match="another seed"):
        compare(jobs("rtn", seed=1), tmp_path, SILENT, Recorder())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": {}, "machine": {}}'])
def test_a_folder_with_an_unreadable_result_is_refused(tmp_path: Path, text: str):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(UsageError, match="comparison"):
        compare(jobs("rtn"), tmp_path, SILENT, Recorder())
    assert (tmp_path / "comparison.json").read_text() == text


def test_the_reason_of_a_measuring_process_is_raised(tmp_path: Path):
    job = dataclasses.replace(BASE, checkpoint=tmp_path / "missing.pth", cache=tmp_path)
    with pytest.raises(MeasurementError, match=r"missing\.pth") as caught:
        in_own_process(job, SILENT, "")
    assert caught.value.exit_code == 3


def test_a_measuring_process_that_dies_is_reported_with_its_last_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.comparison.runner.PROGRAM", ("-c", "import sys; sys.exit('no\\nroom left')"))
    with pytest.raises(MeasurementError, match="exited with code 1: room left"):
        in_own_process(BASE, SILENT, "")
    monkeypatch.setattr("service.comparison.runner.PROGRAM", ("-c", "import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(MeasurementError, match="killed by signal 9"):
        in_own_process(BASE, SILENT, "")


def test_a_stage_that_counts_no_steps_is_shown_from_its_beginning(monkeypatch: pytest.MonkeyPatch):
    lines = '{"stage": "import"}\\n{"stage": "quantize"}\\n{"done": 3, "total": 7}\\n{"row": {}}'
    monkeypatch.setattr("service.comparison.runner.PROGRAM", ("-c", f"print('{lines}')"))
    noted = NotedProgress()
    assert in_own_process(BASE, noted, "") == {}
    assert noted.steps == {": import": [(0, 1)], ": quantize": [(0, 1), (3, 7)]}
