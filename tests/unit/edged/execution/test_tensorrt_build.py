"""The process that builds: it needs no torch, ends with its parent, and reads only what TensorRT takes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from edged.execution.tensorrt_build import FAILED, MODEL, PLAN, REQUEST, NotBuiltError, run
from tests.support.fake_gpu import FakeTensorRt
from tests.support.tensorrt import asymmetric_model, integer_model


def prepared(folder: Path, model: bytes) -> Path:
    (folder / MODEL).write_bytes(model)
    (folder / REQUEST).write_text(json.dumps({"workspace_bytes": 1 << 26, "max_batch": 2}))
    return folder


def test_codes_that_are_not_symmetric_are_refused(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    with pytest.raises(NotBuiltError, match="only symmetric codes are supported") as raised:
        run(prepared(tmp_path, asymmetric_model()))
    assert raised.value.kind == FAILED


def test_a_build_imports_no_torch(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edged.execution.tensorrt_build import run;"
        "print(run(Path(sys.argv[1]))['tensorrt']); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(prepared(tmp_path, integer_model()))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "10.3.0\n"
    assert (tmp_path / PLAN).is_file()


def test_a_build_ends_with_the_process_that_started_it(fake_tensorrt: FakeTensorRt, tmp_path: Path) -> None:
    fake_tensorrt.use(tensorrt_fails="hang")
    prepared(tmp_path, integer_model())
    code = (
        "import os, subprocess, sys;"
        "command = [sys.executable, '-m', 'edged.execution.tensorrt_build', sys.argv[1], str(os.getpid())];"
        "child = subprocess.Popen(command);"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([child], [], [], 60)[0], "the child goes on"
    os.close(child)
