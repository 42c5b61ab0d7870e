from __future__ import annotations

from typing import Any

import pytest

from edged.progress import SilentListener
from service.comparison.runner import compare, measurements
from service.comparison.table import as_csv, as_text
from tests.support.comparisons import BASE, Recorder

MORE = ("memory", "added", "steps")


def result(*methods: str, failing: str = "") -> dict[str, Any]:
    return compare(list(measurements(BASE, methods, [4])), None, SilentListener(), Recorder(failing))


def test_the_table_has_the_columns_of_the_paper():
    lines = as_text(result("rtn", "adaround", "nncf", "obq", failing="obq")).splitlines()
    assert lines[0].split() == ["method", "bits", "top-1", "drop", "time", "passes", "CPU", "passes", *MORE]
    assert lines[1].split() == ["full", "precision", "32", "81.03", "±", "0.39"]
    assert lines[2].split() == ["rtn", "4", "60.00", "±", "0.49", "21.03", "0.05", "s", "0.0", "1.5", "100.0", "MiB"]
    assert lines[3].split()[:6] == ["adaround", "4", "80.50", "±", "0.40", "0.53"]
    assert lines[3].split()[-1] == "10000"
    assert lines[4].split() == ["obq", "4", "failed"]
    assert lines[5].split()[1] == "8/8"
    assert lines[-1] == "obq at 4 bits failed: out of memory; use fewer images"
    assert "922 calibrate" in lines[-4]
    assert "AMD EPYC, 2 threads" in lines[-3]
    assert lines[-2] == "tools of others: nncf 3.4.0"


def test_differences_to_the_reference_have_their_paired_errors():
    lines = as_text(result("rtn", "balanced", "nncf")).splitlines()
    assert lines[0].split()[:6] == ["method", "bits", "top-1", "drop", "to", "balanced"]
    assert lines[2].split()[5:9] == ["21.03", "-20.90", "±", "0.41"]
    assert lines[3].split()[5:8] == ["0.13", "5.00", "s"]  # the reference itself
    assert lines[4].split()[5:8] == ["6.03", "5.00", "s"]  # bits of activations differ
    assert "paired" in lines[6]


def test_csv_has_the_numbers_unrounded():
    header, _, failed, adaround = as_csv(result("adaround", "rtn", failing="rtn")).splitlines()
    names = header.split(",")
    values = dict(zip(names, adaround.split(","), strict=True))
    assert float(values["seconds"]) == 600.5
    assert float(values["top1_error"]) == pytest.approx(0.396, abs=1e-3)
    assert values["to_balanced"] == ""
    assert int(values["added_bytes"]) == 100 << 20
    assert values["error"] == ""
    assert failed.startswith("rtn,4,,")
