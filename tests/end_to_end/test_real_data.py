"""Real checkpoints, dropped one after another, go live at 4 bits; what they lose is measured on real images."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WIDTH_128 = {"size": 128, "resize": 144}
# Name, checkpoint, calibration images, test images, input, top-1 in full precision, points it may lose.
MODELS: list[tuple[str, str, str, str, dict[str, int], float, float]] = [
    ("resnet18", "resnet18-imagenette.pth", "imagenette/calib", "imagenette/val", WIDTH_128, 84.74, 1.0),
    ("resnet20", "resnet20-12fca82f.th", "cifar10/calib", "cifar10/test", {}, 81.03, 1.0),
    ("resnet56", "resnet56-4bfd9763.th", "cifar10/calib", "cifar10/test", {}, 83.20, 1.0),
]


def top1(model: Path, data: Path, cache: Path, size: dict[str, int]) -> float:
    command = [sys.executable, "-m", "service.cli.main", "evaluate", str(model), "--data", str(data), "--json"]
    command += ["--cache", str(cache)]
    if size:
        command += ["--input-size", str(size["size"]), "--resize", str(size["resize"])]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["top1"])


def test_three_models_one_after_another(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured: list[dict[str, Any]] = [
        {
            "name": name,
            "calibration": {"dir": str(real_data / calibration)},
            "quantization": {"bits": 4},
            **({"input": size} if size else {}),
        }
        for name, _, calibration, _, size, _, _ in MODELS
    ]
    with running(tmp_path, real_data, models=configured) as daemon:
        for name, file, _, data, size, expected, allowed in MODELS:
            checkpoint = real_data / "weights" / file
            daemon.drop(checkpoint, model=name)
            update = daemon.update_of(file)
            assert update["state"] == "COMMITTED", update
            before = top1(checkpoint, real_data / data, tmp_path / "cache", size)
            after = top1(daemon.state / "models" / name / "current", real_data / data, tmp_path / "cache", {})
            with capsys.disabled():
                show(name, update, before, after)
            assert before == pytest.approx(expected, abs=0.3)
            assert before - after < allowed
        with capsys.disabled():
            show_daemon(daemon)
        assert daemon.stop() == 0


def show(name: str, update: dict[str, Any], before: float, after: float) -> None:
    report = update["report"]
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in update["stages"].items())
    whole, packed = report["checkpoint_bytes"], report["artifact_bytes"]
    print(
        f"\n{name}: top-1 {before:.2f} -> {after:.2f} %, {whole} -> {packed} bytes ({packed / whole:.3f}),"
        f" worker peak {report['peak_memory_bytes'] / 2**20:.0f} MiB\n  seconds: {stages}"
    )


def show_daemon(daemon: Daemon) -> None:
    command = [
        sys.executable,
        "-m",
        "service.cli.main",
        "status",
        "--json",
        "--socket",
        str(daemon.state / "edged.sock"),
    ]
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.monotonic() - start)
    print(
        f"supervisor: {daemon.rss_bytes() / 2**20:.1f} MiB; edged status --json: {1000 * min(seconds):.0f} ms at best,"
        f" {1000 * max(seconds):.0f} ms at worst of {len(seconds)}"
    )
