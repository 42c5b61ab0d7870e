"""`edged calib`, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.pictures import write_folder


def test_the_command_line_still_takes_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", classes=0, images=40)
    config = tmp_path / "edged.yaml"
    model = "{name: m, calibration: {dir: images}, input: {size: 16, resize: 16}}"
    config.write_text(f"state_dir: state\nmodels: [{model}]\n")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def calib(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service.cli.main", "calib", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

    done = calib(tmp_path / "images", "--input-size", 16, "--json")
    assert json.loads(done.stdout)["images"] == 40
    done = calib("list", "--config", config, "--json")
    assert json.loads(done.stdout)["models"][0]["images"] == 40
    assert calib("add").returncode == 2
    assert "add|list|verify|stats|purge" in calib("--help").stdout
