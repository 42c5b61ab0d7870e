"""How much a new generation takes. What follows from it: tests/end_to_end/test_swaps.py."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edged.artifacts.store import ModelStore
from service.rollout.policy import Choice, choose, needed_bytes
from service.storage.generations import GenerationRepository
from service.system.disk_thread import Disk
from service.system.processes import own_bytes, resident_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("live", "live_network", "network", "engine", "needed"),
    [
        (400, 100, 100, "torch", 600),  # as much as the one in service, and half as much again
        (400, 100, 300, "torch", 1264),  # a larger network: what loading it takes
        (400, 300, 100, "torch", 464),  # a smaller one
        (400, 0, 300, "torch", 1264),  # an artifact of before is in service
        (400, 100, 0, "", 600),
        (0, 0, 100, "torch", 534),  # none in service to measure
        (0, 100, 0, "", 384),
        (300, 299, 1, "torch", 192),  # never less than torch itself
        (38, 1, 1, "onnxruntime", 68),  # the least that loading takes
        (38, 1, 0, "onnxruntime", 57),
        (0, 0, 1, "onnxruntime", 97.5),
        (200, 1, 1, "onnxruntime", 300),  # a large input: its values, not its network
    ],
)
def test_needed_memory_follows_the_networks(
    live: int, live_network: int, network: int, engine: str, needed: float
) -> None:
    assert needed_bytes(live * MIB, live_network * MIB, network * MIB, engine) == needed * MIB


ONNX = {"onnx": {"sha256": "0" * 64}}


@pytest.mark.parametrize(
    ("runtime", "manifest", "live", "needed"),
    [
        ("auto", ONNX, None, 97.5),  # no generation is in service to measure
        ("auto", ONNX, "torch", 97.5),  # another engine's memory says nothing
        ("auto", {**ONNX, "serve": {"engine": "openvino", "precision": "integer"}}, "onnxruntime", 385.5),
        ("auto", {}, "onnxruntime", 385.5),  # an artifact of before: torch computes it
        ("torch", ONNX, "onnxruntime", 385.5),
    ],
)
def test_the_engine_that_will_serve_decides(
    tmp_path: Path, runtime: str, manifest: dict[str, Any], live: str | None, needed: float
) -> None:
    process = None if live is None else SimpleNamespace(engine=live, pid=os.getpid(), number=1)
    assert choice(tmp_path, runtime, manifest, process).needed_bytes == needed * MIB


def test_of_a_process_with_the_same_engine_only_its_own_memory_counts(tmp_path: Path) -> None:
    process = SimpleNamespace(engine="onnxruntime", pid=os.getpid(), number=1)
    needed = choice(tmp_path, "auto", ONNX, process).needed_bytes
    assert needed is not None
    assert 1.3 * own_bytes(os.getpid()) < needed < 1.5 * resident_bytes(os.getpid())


def choice(root: Path, runtime: str, manifest: dict[str, Any], live: Any) -> Choice:
    """Choose for the second of two generations, whose networks take 1 MiB each."""
    store, disk = ModelStore(root / "models"), Disk()
    for name in ("a", "b"):
        staged = root / name
        staged.mkdir()
        (staged / "manifest.json").write_text(json.dumps(manifest))
        (staged / "report.json").write_text(json.dumps({"totals": {"network_bytes": MIB}}))
        store.publish("m", staged)
    server: Any = SimpleNamespace(name="m", live=live, wanted=1, limits=SimpleNamespace(runtime=runtime))
    try:
        return asyncio.run(choose(server, GenerationRepository(store, disk), 2, "auto"))
    finally:
        disk.close()
