"""The dashboard, as its own types and a type checker see it; tests/end_to_end/test_dashboard.py runs its queries."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.metrics.registry import Metrics
from tests.support.dashboard import DASHBOARD, FOLDER, PANELS
from tests.support.metrics import families

needs_sdk = pytest.mark.skipif(sys.version_info < (3, 11), reason="grafana-foundation-sdk needs Python 3.11")


def queries() -> list[str]:
    """Every PromQL of the dashboard."""
    panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    return panels + [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]


@needs_sdk
def test_the_file_is_what_the_code_builds():
    built = runpy.run_path(str(FOLDER / "dashboard.py"))["text"]()
    assert (FOLDER / "edged.json").read_text() == built, "run: python configs/grafana/dashboard.py"


@needs_sdk
def test_a_type_checker_accepts_it():
    mypy = Path(sys.executable).with_name("mypy")
    command = [mypy, "--strict", "--python-version", "3.11", FOLDER / "dashboard.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_panels_have_unique_ids_titles_and_places():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_instances_and_models_can_be_selected():
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance", "model"]
    used = {name for query in queries() for name in re.findall(r"\$(\w+)", query)}
    assert used == {"instance", "model", "__rate_interval", "__range"}
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


def test_it_queries_only_metrics_that_exist(tmp_path):
    known = set(families(Metrics(CollectorRegistry(), "1", tmp_path)))
    for query in queries():
        for name in re.findall(r"\b(?:edged|process)_\w+", query):
            assert name in known or re.sub(r"_(bucket|sum|count)$", "", name) in known, name
