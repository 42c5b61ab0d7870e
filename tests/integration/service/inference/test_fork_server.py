"""The process that generations are forked from: one thread, no CUDA, and no import left to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.system.processes import child_environment
from tests.support.artifacts import write_untrained, write_untrained_detector

IMPORTS = """
import os, sys
from service.inference import fork_server
fork_server._import_lazy_modules()
assert os.listdir("/proc/self/task") == [str(os.getpid())], "threads"
"""
ANSWERS = """
import argparse, base64, io, json
from pathlib import Path
from PIL import Image
from service.inference.binary import Body
from service.inference.main import _load
import onnxruntime  # it starts a thread, so that each generation imports it itself
before = set(sys.modules)
options = {"artifact": Path(sys.argv[1]), "model": "m", "generation": "1", "max_batch": 1}
options |= {"engine_cache": None, "providers": ["cpu"]}
options |= {"engine_cache": None, "providers": ["cpu"]}
served, _ = _load(argparse.Namespace(**options, threads=1, runtime="auto", device="cpu", beside=False), None)
assert "torch" not in sys.modules
for kind in ("JPEG", "PNG", "WEBP", "BMP"):
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, kind)
    data = [base64.b64encode(file.getvalue()).decode()]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}
    answer = served.answer_together([served.prepare(Body(json.dumps(body).encode()), None)])[0]
    assert answer.status == 200, answer.body
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("write", [write_untrained, write_untrained_detector])
def test_a_generation_imports_nothing(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path / "artifact")
    command = [sys.executable, "-c", IMPORTS + ANSWERS, str(tmp_path / "artifact")]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(1))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
