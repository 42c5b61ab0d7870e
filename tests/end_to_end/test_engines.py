"""OpenVINO through the daemon: it judges and serves, its compiled models are kept, and damaged ones are made anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edged.artifacts.reader import read_artifact
from tests.support.daemon import Daemon, edged, running
from tests.support.tasks import Task

pytest.importorskip("openvino", reason="needs openvino; `pip install openvino`")


def serves(daemon: Daemon, task: Task, generation: int) -> None:
    answer = daemon.infer(next(task.test.rglob("*.png")))
    assert (answer.status_code, answer.json()["model_version"]) == (200, str(generation))
    assert daemon.status()["models"][0]["runtime"] == "openvino"


def test_openvino(task: Task, tmp_path: Path) -> None:
    digits = {
        "name": "digits",
        "calibration": {"dir": str(task.calibration)},
        "input": {"size": 8, "resize": 8},
        "quantization": {"bits": 4, "activation_bits": 8},
        "runtime": "openvino",
    }
    with running(tmp_path, task.calibration, models=[digits]) as daemon:
        daemon.put_live(task.first)
        serves(daemon, task, 1)
        daemon.put_live(task.second)
        serves(daemon, task, 2)
        generations = daemon.state / "models" / "digits" / "gen"
        assert (read_artifact(generations / "2").manifest.warmup or {})["engine"] == "openvino"
        compiled = sorted((daemon.state / "engines" / "digits").iterdir())
        assert len(compiled) == 2
        assert edged(daemon, "gc", "--dry-run")[1]["removed"] == []

        model, manifest = generations / "1" / "model.onnx", generations / "1" / "manifest.json"
        model.write_bytes(model.read_bytes()[:-1])
        said = json.loads(manifest.read_text())
        said["onnx"]["sha256"] = "ab" * 32  # as another version has written it: it cannot be made again
        manifest.write_text(json.dumps(said))
        manifest.with_suffix(".sha256").unlink()
        code, answer = edged(daemon, "rollback", "digits")
        assert code != 0
        assert "model.onnx has sha256" in answer["error"]
        serves(daemon, task, 2)

        daemon.stop()
        for path in compiled:
            path.write_bytes(b"x")
        daemon.start()
        serves(daemon, task, 2)
        assert "is damaged; the model is compiled again" in daemon.log.read_text()
        (kept,) = (daemon.state / "engines" / "digits").iterdir()  # what no manifest names was deleted at the start
        assert kept in compiled
        assert kept.read_bytes() != b"x"
