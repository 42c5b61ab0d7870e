"""The process that measures one method."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from service.comparison.job import Measurement
from tests.support.tasks import Task


def messages(job: Measurement) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "service.comparison.main"]
    request = json.dumps({"parent": os.getpid(), "measurement": job.to_dict()})
    done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_settings_replace_those_of_a_recipe(task: Task, tmp_path: Path) -> None:
    job = Measurement(task.first, task.calibration, task.test, tmp_path, "fast", 2, input={"size": 8}, threads=1)
    (error,) = messages(dataclasses.replace(job, settings={"order": "any"}))[-1:]
    assert "order has value 'any'" in error["error"]


def test_it_reports_stages_progress_and_one_row(task: Task, tmp_path: Path) -> None:
    job = Measurement(task.first, task.calibration, task.test, tmp_path, "fast", 2, input={"size": 8}, threads=1)
    *progress, last = messages(job)
    stages = [message["stage"] for message in progress if "stage" in message]
    assert (stages[stages.index("quantize")], stages[-1]) == ("quantize", "predict")
    assert any(message.get("done") == message.get("total") != None for message in progress)  # noqa: E711
    row = last["row"]
    assert (row["method"], row["bits"], row["iterations"]) == ("fast", 2, 0)
    assert row["seconds"] > 0
    assert row["passes"] == round(row["seconds"] / row["forward_seconds"], 3) or row["forward_seconds"] < 0.1
    assert row["score"]["images"] == 297
    assert row["machine"]["threads"] == 1


def test_cat_transforms_the_logits_of_the_recipe_it_is_compared_with(task: Task, tmp_path: Path) -> None:
    job = Measurement(task.first, task.calibration, task.test, tmp_path, "balanced", 2, input={"size": 8}, threads=1)
    plain, transformed = (messages(each)[-1]["row"] for each in (job, dataclasses.replace(job, method="cat")))
    assert transformed["method"] == "cat"
    assert transformed["identity"] == plain["identity"]
    assert abs(transformed["score"]["top1"] - plain["score"]["top1"]) < 10
