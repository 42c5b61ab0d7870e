"""Small published models without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edged.artifacts.manifest import Manifest
from edged.artifacts.writer import write_artifact
from edged.execution.onnx_model import onnx_model
from edged.models.registry import Architecture, build, load_model
from edged.spec import DetectionSpec, InputSpec, QuantSpec
from tests.support import scenes
from tests.support.trained import INPUT
from tests.support.yolov5_samples import tiny_model

ARCHITECTURE = Architecture("cifar_resnet20", 10, stem="cifar", shortcut="pad")


def write_untrained(directory: Path, seed: int = 0, poison: bool = False) -> dict[str, torch.Tensor]:
    """Write an artifact of a ResNet-20 with random weights, none quantized, and return its tensors."""
    torch.manual_seed(seed)
    model = build(ARCHITECTURE)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    state = dict(model.state_dict())
    if poison:
        state["linear.bias"][3] = float("nan")
    write(directory, state, ARCHITECTURE, INPUT)
    return state


def write_untrained_detector(directory: Path, poison: bool = False) -> dict[str, torch.Tensor]:
    """Write an artifact of a tiny YOLOv5 with random weights and return its tensors."""
    state = dict(tiny_model(scenes.plan()).state_dict())
    if poison:
        state["model.9.m.1.bias"][3] = float("nan")
    write(
        directory,
        state,
        Architecture.detector(scenes.plan()),
        scenes.INPUT,
        classes=scenes.NAMES,
        task="detection",
        detection=DetectionSpec(0.3, 0.5, 20).to_dict(),
    )
    return state


def write(
    directory: Path, state: dict[str, torch.Tensor], architecture: Architecture, spec: InputSpec, **changes: Any
) -> None:
    """Write an artifact of these tensors, none quantized."""
    source: dict[str, Any] = {"sha256": "0" * 64, "bytes": 1000, "name": "none.pt", "format": "torch-zip"}
    calibration = {"digest": "0" * 64, "images": 0, "held_out": 0, "skipped": 0, "folder_labels": False}
    values: dict[str, Any] = {
        "name": "digits",
        "architecture": architecture.to_dict(),
        "input": spec.to_dict(),
        "quantization": QuantSpec().to_dict(),
        "source": source,
        "calibration": calibration,
        "classes": None,
        "versions": {"edged": "0"},
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    manifest = Manifest(**(values | changes))
    directory.parent.mkdir(parents=True, exist_ok=True)
    onnx = None
    if state:
        model = onnx_model(load_model(state, architecture).eval(), {}, None, architecture, spec)
        onnx = model.SerializeToString()
    write_artifact(directory, quantized={}, rest=state, manifest=manifest, report={"totals": {}}, onnx=onnx)
