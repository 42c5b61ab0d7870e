"""Memory of a process that reads large files: names and shapes come first, and values stay on the disk."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edged.models.resnet import CifarResNet

LARGE = 1 << 30
# A fresh process: the peak of this one is that of all tests before.
SCRIPT = """
import sys
from pathlib import Path
from edged.errors import EdgedError
from edged.models.inspection import inspect_checkpoint
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
try:
    inspect_checkpoint(Path(sys.argv[1]))
    print("accepted", peak() - before)
except EdgedError as error:
    print(str(error)[-300:].replace(" ", "_"), peak() - before)
"""


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """Write a safetensors file whose values are a hole in the file."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_an_unknown_network_of_a_gigabyte_is_rejected_by_its_names(dtype: str, tmp_path: Path) -> None:
    size = {"F32": 4, "F16": 2}[dtype]
    known = {
        name: (dtype, list(tensor.shape), tensor.numel() * size)
        for name, tensor in CifarResNet(3).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "m.safetensors"
    write_sparse(path, known | {"decoder.weight": (dtype, [LARGE // size // 1024, 1024], LARGE)})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    reason, grown = done.stdout.split()
    assert "decoder.weight" in reason, done.stderr
    assert int(grown) < LARGE // 8
