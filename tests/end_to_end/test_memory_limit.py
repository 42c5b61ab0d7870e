"""`edged quantize --memory-limit` inside a control group that kills what needs more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edged.models.torchvision_shim import import_torchvision
from tests.support.pictures import write_folder
from tests.support.processes import ENTER
from tests.support.repository import ROOT

MIB = 1 << 20
LIMIT = 800 * MIB

# A process of its own: what it needs to make the file is not what is measured.
SAVE_YOLOV5X = """
import sys
import torch
from edged.models.yolov5.network import YoloV5
from edged.models.yolov5.standard import standard
from edged.models.yolov5.standard import _rows
from tests.support.yolov5_samples import classes_of_yolov5, pickled

torch.manual_seed(0)
plan = standard("x", [str(number) for number in range(80)])
rows = _rows([128, 256, 512, 1024], focus=False)
yaml = dict(nc=80, depth_multiple=1.33, width_multiple=1.25, backbone=rows[:10], head=rows[10:])
yaml["anchors"] = [[side for pair in level for side in pair] for level in plan.anchors]
with classes_of_yolov5() as classes:
    torch.save({"model": pickled(YoloV5(plan), plan, classes, yaml=yaml), "ema": None}, sys.argv[1])
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group (version 1) with LIMIT, inside that of the tests."""
    own = next((line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().split() if ":memory:" in line), "")
    folder = Path("/sys/fs/cgroup/memory") / own.strip("/") / f"edged-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    yield folder
    folder.rmdir()


@pytest.mark.slow
def test_a_resnet50_stays_within_its_limit(group: Path, tmp_path: Path):
    torch.manual_seed(0)
    torch.save(import_torchvision().models.resnet50().state_dict(), tmp_path / "resnet50.pth")
    write_folder(tmp_path / "images", classes=4, images=40)
    command = [sys.executable, "-m", "service.cli.main", "quantize", str(tmp_path / "resnet50.pth")]
    command += ["--calib", str(tmp_path / "images"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    command += ["--memory-limit", str(LIMIT), "--json"]
    inside = [sys.executable, "-c", ENTER, str(group / "cgroup.procs"), *command]
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["plan"]["peak_bytes"] <= LIMIT
    assert report["totals"]["peak_memory_bytes"] <= LIMIT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_yolov5x_stays_within_its_limit(group: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """170 MB of half precision become 331 MiB of weights, and as much again decoded while they are quantized."""
    limit = 2200 * MIB
    (group / "memory.limit_in_bytes").write_text(str(limit))
    subprocess.run([sys.executable, "-c", SAVE_YOLOV5X, tmp_path / "best.pt"], check=True, cwd=ROOT)
    assert 160e6 < (tmp_path / "best.pt").stat().st_size < 180e6
    write_folder(tmp_path / "images", classes=0, images=40)
    command = [sys.executable, "-m", "service.cli.main", "quantize", str(tmp_path / "best.pt"), "--input-size", "96"]
    command += ["--calib", str(tmp_path / "images"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    command += ["--memory-limit", str(limit), "--recipe", "fast", "--json"]
    inside = [sys.executable, "-c", ENTER, str(group / "cgroup.procs"), *command]
    done = subprocess.run(inside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with capsys.disabled():
        seconds = report["totals"]["stage_seconds"]["quantize"]
        peak, planned = (n / MIB for n in (report["totals"]["peak_memory_bytes"], report["plan"]["peak_bytes"]))
        print(f"\nyolov5x: {peak:.0f} MiB at most, planned {planned:.0f}; quantized in {seconds:.0f} s")
    assert report["totals"]["task"] == "detection"
    assert report["totals"]["peak_memory_bytes"] <= limit


@pytest.mark.slow
def test_an_impossible_limit_is_refused_at_once(tmp_path: Path):
    torch.save(import_torchvision().models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    write_folder(tmp_path / "images", classes=2, images=32)
    command = [sys.executable, "-m", "service.cli.main", "quantize", str(tmp_path / "resnet18.pth")]
    command += ["--calib", str(tmp_path / "images"), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--memory-limit", "450MiB"], capture_output=True, text=True)
    assert done.returncode == 75
    assert "memory limit of 450 MiB is too little for this model; it takes at least" in done.stderr
    assert not (tmp_path / "out").exists()
