"""Memory of a process that reads large files: names and shapes come first, and values stay on the disk."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edged.models.architecture import Architecture
from edged.models.registry import build
from edged.models.resnet import CifarResNet

LARGE = 1 << 30
# A fresh process: the peak of this one is that of all tests before.
SCRIPT = """
import sys
from pathlib import Path
from edged.errors import EdgedError
from edged.models.inspection import inspect_checkpoint
from edged.models.loading import load_checkpoint
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before = peak()
try:
    {"inspect": inspect_checkpoint, "load": load_checkpoint}[sys.argv[2]](Path(sys.argv[1]))
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


def read_in_child(path: Path, how: str) -> tuple[str, int]:
    """Return what a process of its own says of a file, and by how many bytes its peak of memory grew."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), how],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    reason, grown = done.stdout.split()
    return reason, int(grown)


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
    reason, grown = read_in_child(path, "inspect")
    assert "decoder.weight" in reason
    assert grown < LARGE // 8


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("safetensors", torch.float32), ("safetensors", torch.float16), ("zip", torch.float32), ("zip", torch.float64)],
)
def test_loading_takes_the_memory_of_the_network_once(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Neither the file's pages nor a second copy of the tensors are in memory next to the network."""
    state = {
        name: torch.full_like(tensor, 1, dtype=dtype)
        for name, tensor in build(Architecture("resnet34", 10)).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path / "m"
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    size = sum(4 * tensor.numel() for tensor in state.values())
    reason, grown = read_in_child(path, "load")
    assert reason == "accepted"
    assert grown < 1.5 * size
