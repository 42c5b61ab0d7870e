"""A damaged or missing model.onnx is written again from the codes if that gives the judged one, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edged.artifacts.reader import read_artifact
from edged.errors import ArtifactError
from edged.pipeline.rebuild import rebuild
from tests.support.artifacts import write_untrained, write_untrained_detector


@pytest.mark.parametrize("write", [write_untrained, write_untrained_detector])
def test_the_same_bytes_follow_from_the_codes(tmp_path: Path, write: object) -> None:
    folder = tmp_path / "artifact"
    write(folder)  # type: ignore[operator]
    model = folder / "model.onnx"
    judged = model.read_bytes()
    model.write_bytes(judged[:1000])
    rebuild(folder)
    assert model.read_bytes() == judged
    model.unlink()
    done = subprocess.run([sys.executable, "-m", "edged.pipeline.rebuild", folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert model.read_bytes() == judged


def test_other_bytes_than_those_that_were_judged_are_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    write_untrained(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["onnx"]["sha256"] = "ab" * 32
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "model.onnx").unlink()
    done = subprocess.run([sys.executable, "-m", "edged.pipeline.rebuild", folder], capture_output=True, text=True)
    assert done.returncode == ArtifactError.exit_code
    assert "another version of edged or of onnx wrote it; quantize the checkpoint again" in done.stderr
    assert not (folder / "model.onnx").exists()
    manifest["onnx"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"has no model\.onnx, so there is nothing to write again"):
        rebuild(folder)
    assert read_artifact(folder).manifest.onnx is None
