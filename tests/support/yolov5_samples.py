"""Small detectors, and checkpoints of them as YOLOv5's training writes them: pickled modules of its classes."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from edged.models.yolov5.network import YoloV5
from edged.models.yolov5.plan import Plan, parse_anchors, parse_rows

COMMON = ("Conv", "Bottleneck", "C3", "SPP", "SPPF", "Focus", "Concat")
BACKBONE: list[Any] = [
    [-1, 1, "Conv", [32, 6, 2, 2]],
    [-1, 1, "Conv", [32, 3, 2]],
    [-1, 3, "C3", [32]],
    [-1, 1, "Conv", [64, 3, 2]],
    [-1, 1, "SPPF", [64, 5]],
]
HEAD: list[Any] = [
    [-1, 1, "Conv", [32, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [[-1, 2], 1, "Concat", [1]],
    [-1, 3, "C3", [32, False]],
    [[8, 4], 1, "Detect", ["nc", "anchors"]],
]
ANCHORS = [[[5.0, 6.0], [8.0, 15.0]], [[20.0, 18.0], [30.0, 40.0]]]


def tiny_plan(names: tuple[str, ...] = ("cat", "dog", "cow")) -> Plan:
    """Return a plan with two levels of strides 4 and 8."""
    return Plan(0.33, 0.5, parse_rows([*BACKBONE, *HEAD]), parse_anchors(ANCHORS), names)


def tiny_model(plan: Plan | None = None, seed: int = 0) -> YoloV5:
    """Return a network with random weights and BatchNorm statistics that differ from layer to layer."""
    torch.manual_seed(seed)
    model = YoloV5(plan or tiny_plan())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def yaml_of(plan: Plan, **changes: Any) -> dict[str, Any]:
    """Return the yaml of a checkpoint of the tiny network."""
    yaml = {"nc": len(plan.names), "depth_multiple": plan.depth, "width_multiple": plan.width, "ch": 3}
    rows = {"anchors": [[side for pair in level for side in pair] for level in ANCHORS]}
    return copy.deepcopy(yaml | rows | {"backbone": BACKBONE, "head": HEAD} | changes)


@contextmanager
def classes_of_yolov5(*others: str) -> Iterator[dict[str, type]]:
    """Yield classes that pickle as YOLOv5's own, by name; `others` are further dotted names."""
    names = ["models.yolo.Model", "models.yolo.DetectionModel", "models.yolo.Detect"]
    names += [*(f"models.common.{name}" for name in COMMON), *others]
    made: dict[str, type] = {}
    for name in names:
        module, _, attribute = name.rpartition(".")
        for depth in range(1, module.count(".") + 2):
            part = ".".join(module.split(".")[:depth])
            sys.modules.setdefault(part, ModuleType(part))
        made[name] = type(attribute, (nn.Module,), {"__module__": module})
        setattr(sys.modules[module], attribute, made[name])
    try:
        yield made
    finally:
        for name in [key for key in sys.modules if key.partition(".")[0] in {n.partition(".")[0] for n in names}]:
            del sys.modules[name]


def as_yolov5(module: nn.Module, classes: dict[str, type]) -> nn.Module:
    """Return the same tree of modules and tensors under YOLOv5's names."""
    name = type(module).__name__
    known = classes.get(f"models.common.{name}") or (classes["models.yolo.Detect"] if name == "Detect" else None)
    if known is None and not isinstance(module, nn.Sequential | nn.ModuleList):
        return module
    twin = known() if known else type(module)()
    for key, child in module.named_children():
        twin.add_module(key, as_yolov5(child, classes))
    return twin


def pickled(model: YoloV5, plan: Plan, classes: dict[str, type], root: str = "Model", **attributes: Any) -> nn.Module:
    """Return the half-precision object that YOLOv5 would save of `model`, with `attributes` set on it."""
    strides = torch.tensor(plan.strides(), dtype=torch.float32)
    rows = as_yolov5(model.model, classes)
    detect = rows[-1]
    detect.stride = strides
    detect.register_buffer("anchors", torch.tensor(plan.anchors) / strides[:, None, None])
    whole = classes[f"models.yolo.{root}"]()
    whole.model = rows
    given = {"yaml": yaml_of(plan), "names": list(plan.names), "stride": strides, "nc": len(plan.names)} | attributes
    for key, value in given.items():
        setattr(whole, key, value)
    return copy.deepcopy(whole).half()


def save_tiny(path: Path, model: YoloV5 | None = None, plan: Plan | None = None, **attributes: Any) -> Path:
    """Write a checkpoint as YOLOv5's training leaves it."""
    plan = plan or tiny_plan()
    with classes_of_yolov5() as classes:
        whole = pickled(model or tiny_model(plan), plan, classes, **attributes)
        torch.save({"epoch": -1, "best_fitness": None, "model": whole, "ema": None, "optimizer": None}, path)
    return path
