from __future__ import annotations

from typing import Any

import pytest

from edged.progress import SilentListener
from service.comparison.runner import compare, measurements
from service.comparison.table import as_csv, as_text, metric_of
from tests.support.comparisons import BASE, Recorder, row

MORE = ("memory", "added", "steps")


def result(*methods: str, failing: str = "") -> dict[str, Any]:
    return compare(list(measurements(BASE, methods, [4])), None, SilentListener(), Recorder(failing))


def test_the_table_has_the_columns_of_the_paper():
    lines = as_text(result("rtn", "adaround", "nncf", "obq", failing="obq")).splitlines()
    assert lines[0].split() == ["method", "bits", "top-1", "drop", "time", "passes", "CPU", "passes", *MORE]
    assert lines[1].split() == ["full", "precision", "32", "81.03"]
    assert lines[2].split() == ["rtn", "4", "60.00", "21.03", "0.05", "s", "0.0", "1.5", "100.0", "MiB"]
    assert lines[3].split()[:4] == ["adaround", "4", "80.50", "0.53"]
    assert lines[3].split()[-1] == "10000"
    assert lines[4].split()[1] == "8/8"
    assert lines[-1] == "obq at 4 bits failed: out of memory; use fewer images"
    assert "922 calibrate" in lines[-3]
    assert "AMD EPYC, 2 threads" in lines[-2]


@pytest.mark.parametrize("metric", ["top1", "map50_95"])
def test_the_score_that_counts_follows_the_task(metric: str):
    found = row(BASE, metric)
    assert metric_of({"rows": [found]}) == metric


def test_csv_has_the_numbers_unrounded():
    header, _, adaround, failed = as_csv(result("adaround", "rtn", failing="rtn")).splitlines()
    names = header.split(",")
    values = dict(zip(names, adaround.split(","), strict=True))
    assert float(values["seconds"]) == 600.5
    assert int(values["added_bytes"]) == 100 << 20
    assert values["error"] == ""
    assert failed.startswith("rtn,4,,")
