from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving.perf_analyzer import Report, _name_of, report_of, requests, without_perf_analyzer
from edged.spec import InputSpec
from service.inference.requests import parse_request
from service.ipc.messages import Body

HEADER = "Request Rate,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency"
TABLE = f"{HEADER}\n100,90.5,44,3343,10085,13799,35953\n"
OUTPUT = """Request Rate: 100 inference requests per seconds
    Request count: 1000
    [WARNING] Perf Analyzer was not able to keep up with the desired request rate. 2.50% of the requests were delayed.
"""


def test_a_report_is_read_from_the_table_and_the_text() -> None:
    assert report_of(TABLE, OUTPUT) == Report(90.5, 1000, 3.343, 35.953, 0.025)
    assert report_of(TABLE, "Request count: 7").delayed == 0


@pytest.mark.parametrize(("table", "output"), [(HEADER, OUTPUT), (TABLE, "stopped")])
def test_a_run_without_a_measurement_is_an_error(table: str, output: str) -> None:
    with pytest.raises(RuntimeError, match="measured nothing"):
        report_of(table, output)


def test_edged_reads_each_of_the_requests() -> None:
    """As perf_analyzer sends them: the bytes, whose shape it knows from the description of the model."""
    shapes = {"input": [1, 3, 8, 8], "pixels": [1, 3, 8, 8], "image": [1, 1]}
    datatypes = {"input": "FP32", "pixels": "UINT8", "image": "BYTES"}
    sent = [name for request in requests(8) for name in request]
    assert sent == list(shapes)
    for request in requests(8):
        ((name, described),) = request.items()
        data = base64.b64decode(str(described["b64"]))
        tensor = {"name": name, "datatype": datatypes[name], "shape": shapes[name]}
        text = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
        images = parse_request(Body(text + data, len(text)), InputSpec(8, 8)).images
        assert images.shape == (1, 3, 8, 8)
        assert np.ptp(images) > 0


@pytest.mark.parametrize(
    ("file", "name"),
    [("libcudart-09529672.so.12.6.77", "libcudart.so.12"), ("libb64-98cb6333.so.0d", "libb64.so.0d")],
)
def test_libraries_get_the_names_that_programs_look_for(file: str, name: str) -> None:
    assert _name_of(Path(file)) == name


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    assert "perf_analyzer was not measured" in str(without_perf_analyzer(tmp_path))
    assert "no folder of peers" in str(without_perf_analyzer(None))
