"""The daemon starts on the state folder that version 0.1.0 left, and goes on with what that version had begun."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from edged.artifacts.reader import read_artifact
from tests.support import make_state_folder as before
from tests.support.daemon import Daemon, edged, eventually, running

ARCHIVE = Path(before.__file__).parent / "data" / "state-0.1.0.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with state/, expected.json and calibration images."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:
            archive.extractall(folder)  # noqa: S202  # an archive of this repository, on a Python without filters
    before.write_images(folder / "images")
    return folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    models = before.config(folder / "state", folder / "images")["models"]
    for model in models:
        model["runtime"] = "auto"  # that version wrote no ONNX models
    with running(folder, folder / "images", models=models) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return found


def outputs(daemon: Daemon, expected: dict[str, Any]) -> tuple[str, torch.Tensor]:
    """Return the generation that answers the stored input, and its outputs."""
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, before.SIDE, before.SIDE], "data": expected["input"]}
    answer = daemon.post(f"/v2/models/{before.MODEL}/infer", json={"inputs": [tensor]}).json()
    return answer["model_version"], torch.tensor(answer["outputs"][0]["data"])


def assert_answers(daemon: Daemon, expected: dict[str, Any], generation: str) -> None:
    found, values = outputs(daemon, expected)
    assert found == generation
    torch.testing.assert_close(values, torch.tensor(expected["outputs"][generation]), rtol=1e-3, atol=1e-4)


def test_the_live_generation_answers_as_it_did(daemon: Daemon, expected: dict[str, Any]) -> None:
    assert_answers(daemon, expected, "1")


def test_the_history_is_kept(daemon: Daemon) -> None:
    updates = {update["id"]: update for update in daemon.updates()}
    assert [updates[number]["state"] for number in (1, 2, 3)] == ["COMMITTED", "REJECTED", "ROLLED_BACK"]
    assert [updates[number]["file_name"] for number in (1, 2, 3, 4)] == [
        *("first.pt", "broken.pt", "second.pt", "third.pt")
    ]
    assert updates[2]["code"] == "checkpoint"
    assert updates[3]["reason"] == "rolled back to generation 1: on request"
    events = daemon.get("/edged/v1/updates/3").json()["events"]
    assert [event["state"] for event in events][-2:] == ["COMMITTED", "ROLLED_BACK"]
    code, history = edged(daemon, "history", before.MODEL)
    assert code == 0
    assert {(1, "COMMITTED"), (2, "ROLLED_BACK")} <= {(u["generation"], u["state"]) for u in history["updates"]}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_reports_are_shown(daemon: Daemon, number: int) -> None:
    page = daemon.get(f"/edged/v1/updates/{number}/report")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    data = daemon.get(f"/edged/v1/updates/{number}/report.json").json()
    assert data["update"]["id"] == number
    code, _ = edged(daemon, "report", str(number))
    assert code == 0


def test_the_journal_keeps_its_schema(daemon: Daemon) -> None:
    with sqlite3.connect(daemon.state / "journal.db") as journal:
        assert journal.execute("PRAGMA user_version").fetchone() == (3,)
    journal.close()


def test_the_rejected_file_is_still_there(daemon: Daemon) -> None:
    (rejected,) = (daemon.state / "rejected").iterdir()
    assert json.loads((rejected / "reason.json").read_text())["code"] == "checkpoint"
    assert (rejected / "file").read_bytes() == b"not a checkpoint"


def test_the_interrupted_update_goes_on_until_the_pin_and_then_to_its_end(
    daemon: Daemon, expected: dict[str, Any]
) -> None:
    """Its pin outlasts the change of version, too."""
    eventually(lambda: daemon.get("/edged/v1/updates/4").json()["code"] == "pinned", "the update waits at the pin")
    assert daemon.get("/edged/v1/updates/4").json()["state"] == "PUBLISHED"
    assert daemon.status()["models"][0]["pinned"] is True
    assert_answers(daemon, expected, "1")
    assert edged(daemon, "unpin", before.MODEL)[0] == 0
    assert daemon.update_of("third.pt")["state"] == "COMMITTED"
    assert daemon.generation(before.MODEL) == 3
    daemon.await_no_claims()


def test_a_rollback_goes_back_to_the_generation_of_before(daemon: Daemon, expected: dict[str, Any]) -> None:
    assert edged(daemon, "rollback", before.MODEL) == (0, {"model": before.MODEL, "from": 3, "to": 1})
    assert_answers(daemon, expected, "1")


@pytest.mark.parametrize("generation", ["1", "2"])
def test_the_library_reads_the_artifacts(folder: Path, expected: dict[str, Any], generation: str) -> None:
    network = read_artifact(folder / "state" / "models" / before.MODEL / "gen" / generation).load_model()
    values = torch.tensor(expected["input"]).reshape(1, 3, before.SIDE, before.SIDE)
    with torch.inference_mode():
        found = network(values)[0]
    torch.testing.assert_close(found, torch.tensor(expected["outputs"][generation]), rtol=1e-3, atol=1e-4)


def test_edged_evaluate_reads_the_artifact(folder: Path, tmp_path: Path) -> None:
    for name in range(10):
        before.write_images(tmp_path / str(name))
    artifact = folder / "state" / "models" / before.MODEL / "gen" / "2"
    command = [sys.executable, "-m", "service.cli.main", "evaluate", artifact, "--data", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 320
