"""`edged compare` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.tasks import Task


def edged(cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli.main", "compare", *map(str, arguments)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def test_methods_are_compared(task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = ["--calib", task.calibration, "--data", task.test, "--input-size", "8", "--out", out, "--threads", "1"]
    done = edged(tmp_path, task.first, *data, "--methods", "adaround", "--iterations", "3", "--bits", "8", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    full, adaround = result["rows"]
    assert full["score"]["top1"] > 95
    assert abs(full["score"]["top1"] - adaround["score"]["top1"]) < 3
    assert adaround["iterations"] == 3
    assert adaround["passes"] > 1
    assert {path.suffix for path in out.iterdir()} == {".json", ".csv", ".svg"}
    assert json.loads((out / "comparison.json").read_text()) == result


def test_an_unknown_method_is_a_usage_error(task: Task, tmp_path: Path) -> None:
    folders = ["--calib", task.calibration, "--data", task.test]
    done = edged(tmp_path, task.first, *folders, "--methods", "adaronud")
    assert done.returncode == 2
    assert "did you mean 'adaround'" in done.stderr
    assert done.stderr.count("\n") == 1
