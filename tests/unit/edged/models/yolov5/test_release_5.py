"""The networks of YOLOv5 v5.0, with Focus and SPP, against a second reading of their published yaml."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edged.calibration.dataset import build_cache
from edged.compress import compress
from edged.models.architecture import Architecture
from edged.models.loading import load_checkpoint
from edged.models.names import MULTIPLES
from edged.models.registry import build
from edged.models.yolov5.network import YoloV5
from edged.models.yolov5.plan import Plan, parse_anchors, parse_rows
from edged.models.yolov5.standard import standard
from edged.spec import InputSpec, Method, QuantSpec
from tests.support.pictures import write_folder
from tests.support.yolov5_samples import classes_of_yolov5, pickled, tiny_model

# As published with v5.0 (yolov5s.yaml to yolov5x.yaml differ in the multiples alone).
BACKBONE: list[Any] = [
    [-1, 1, "Focus", [64, 3]],
    [-1, 1, "Conv", [128, 3, 2]],
    [-1, 3, "C3", [128]],
    [-1, 1, "Conv", [256, 3, 2]],
    [-1, 9, "C3", [256]],
    [-1, 1, "Conv", [512, 3, 2]],
    [-1, 9, "C3", [512]],
    [-1, 1, "Conv", [1024, 3, 2]],
    [-1, 1, "SPP", [1024, [5, 9, 13]]],
    [-1, 3, "C3", [1024, False]],
]
HEAD: list[Any] = [
    [-1, 1, "Conv", [512, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [[-1, 6], 1, "Concat", [1]],
    [-1, 3, "C3", [512, False]],
    [-1, 1, "Conv", [256, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [[-1, 4], 1, "Concat", [1]],
    [-1, 3, "C3", [256, False]],
    [-1, 1, "Conv", [256, 3, 2]],
    [[-1, 14], 1, "Concat", [1]],
    [-1, 3, "C3", [512, False]],
    [-1, 1, "Conv", [512, 3, 2]],
    [[-1, 10], 1, "Concat", [1]],
    [-1, 3, "C3", [1024, False]],
    [[17, 20, 23], 1, "Detect", ["nc", "anchors"]],
]
ANCHORS = [
    [[10, 13], [16, 30], [33, 23]],
    [[30, 61], [62, 45], [59, 119]],
    [[116, 90], [156, 198], [373, 326]],
]
# Parameters with COCO's 80 classes, from the summaries that v5.0 prints: in training, and with BatchNorm fused.
PARAMETERS = {"s": 7_276_605, "m": 21_375_645, "l": 47_056_765, "x": 87_775_965}
FUSED = {"s": 7_266_973, "x": 87_730_285}


def plan_of(size: str, classes: int = 80, width: float | None = None) -> Plan:
    depth, usual = MULTIPLES[size]
    names = tuple(f"class {index}" for index in range(classes))
    return Plan(depth, width or usual, parse_rows([*BACKBONE, *HEAD]), parse_anchors(ANCHORS), names)


def save(path: Path, model: YoloV5, plan: Plan, *, zipped: bool = True) -> Path:
    """Write a checkpoint as the training code of v5.0 leaves it, with the grid of anchors that it kept in Detect."""
    rows = {"anchors": [[side for pair in level for side in pair] for level in ANCHORS]}
    yaml = {"nc": len(plan.names), "depth_multiple": plan.depth, "width_multiple": plan.width, "ch": 3} | rows
    yaml |= {"backbone": copy.deepcopy(BACKBONE), "head": copy.deepcopy(HEAD)}
    with classes_of_yolov5() as classes:
        whole = pickled(model, plan, classes, yaml=yaml)
        whole.model[-1].register_buffer("anchor_grid", torch.tensor(plan.anchors).view(3, 1, 3, 1, 1, 2).half())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the source of the classes is not saved
            torch.save({"epoch": -1, "model": whole, "optimizer": None}, path, _use_new_zipfile_serialization=zipped)
    return path


class Reading:
    """A forward pass by the published yaml, written down a second time: tensors of a state dict, and no modules."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, at: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{at}.conv.weight"]
        x = functional.conv2d(x, weight, None, stride, weight.shape[2] // 2)
        parts = (self.state[f"{at}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return functional.silu(functional.batch_norm(x, *parts, eps=1e-3))

    def c3(self, at: str, x: Tensor, shortcut: bool) -> Tensor:
        left, index = self.conv(f"{at}.cv1", x), 0
        while f"{at}.m.{index}.cv1.conv.weight" in self.state:
            inner = self.conv(f"{at}.m.{index}.cv2", self.conv(f"{at}.m.{index}.cv1", left))
            left = left + inner if shortcut else inner
            index += 1
        return self.conv(f"{at}.cv3", torch.cat([left, self.conv(f"{at}.cv2", x)], 1))

    def spp(self, at: str, x: Tensor, kernels: list[int]) -> Tensor:
        x = self.conv(f"{at}.cv1", x)
        return self.conv(f"{at}.cv2", torch.cat([x, *(functional.max_pool2d(x, k, 1, k // 2) for k in kernels)], 1))

    def focus(self, at: str, x: Tensor) -> Tensor:
        parts = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(f"{at}.conv", torch.cat(parts, 1))

    def __call__(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for index, (source, _, block, arguments) in enumerate([*BACKBONE, *HEAD[:-1]]):
            at = f"model.{index}"
            sources = source if isinstance(source, list) else [source]
            read = [maps[row] if maps else x for row in sources]  # -1 is the row before
            if block == "Focus":
                maps.append(self.focus(at, read[0]))
            elif block == "Conv":
                maps.append(self.conv(at, read[0], arguments[2]))
            elif block == "C3":
                maps.append(self.c3(at, read[0], len(arguments) == 1))
            elif block == "SPP":
                maps.append(self.spp(at, read[0], arguments[1]))
            elif block == "Concat":
                maps.append(torch.cat(read, 1))
            else:
                maps.append(functional.interpolate(read[0], scale_factor=2, mode="nearest"))
        heads = [f"model.24.m.{level}" for level in range(3)]
        return [
            functional.conv2d(maps[row], self.state[f"{head}.weight"], self.state[f"{head}.bias"])
            for row, head in zip(HEAD[-1][0], heads, strict=True)
        ]


def assert_outputs_equal(found: Tensor, expected: list[Tensor], classes: int) -> None:
    flat = [level.unflatten(1, (3, classes + 5)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in expected]
    torch.testing.assert_close(found, torch.cat(flat, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", PARAMETERS)
def test_the_published_networks_have_their_names_and_parameters(size: str) -> None:
    plan = plan_of(size)
    assert plan == standard(size, plan.names, focus=True)
    architecture = Architecture.detector(plan)
    assert architecture.name == f"yolov5{size}"
    assert plan.strides() == (8, 16, 32)
    with torch.device("meta"):
        model = YoloV5(plan)
    count = sum(parameter.numel() for parameter in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert count == PARAMETERS[size]
    # Fused, a convolution has a bias in place of the weight and bias of its BatchNorm.
    fused = count - sum(norm.num_features for norm in norms)
    assert fused == FUSED.get(size, fused)
    # Manifests from before the names of v5.0's networks were known.
    older = architecture.to_dict() | {"name": "yolov5"}
    assert Architecture.from_dict(older).name == "yolov5"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_narrow_network_computes_what_the_yaml_says(zipped: bool, tmp_path: Path) -> None:
    plan = plan_of("s", 2, width=0.125)
    path = save(tmp_path / "best.pt", tiny_model(plan), plan, zipped=zipped)
    network = load_checkpoint(path, "yolov5", input_settings={"size": 64})
    x = torch.rand(2, 3, 64, 96)
    state = {name: tensor for name, tensor in network.model.state_dict().items() if tensor.is_floating_point()}
    assert_outputs_equal(network.model(x), Reading(state)(x), 2)


@pytest.mark.slow  # up to 88 million parameters
@pytest.mark.parametrize("size", PARAMETERS)
def test_networks_of_real_size_load_and_compute(size: str, tmp_path: Path) -> None:
    plan = plan_of(size)
    path = save(tmp_path / "best.pt", tiny_model(plan), plan)
    network = load_checkpoint(path, f"yolov5{size}", input_settings={"size": 64})
    assert network.architecture == Architecture.detector(plan)
    x = torch.rand(1, 3, 64, 64)
    state = {name: tensor for name, tensor in network.model.state_dict().items() if tensor.is_floating_point()}
    assert_outputs_equal(network.model(x), Reading(state)(x), 80)


@pytest.mark.slow  # 60 layers of real width
def test_the_small_network_is_quantized(tmp_path: Path) -> None:
    plan = plan_of("s")
    path = save(tmp_path / "best.pt", tiny_model(plan), plan)
    network = load_checkpoint(path, "yolov5s", input_settings={"size": 64})
    write_folder(tmp_path / "images", classes=0, images=40)
    cache = build_cache(tmp_path / "images", tmp_path / "cache", InputSpec.letterbox(64))
    done = compress(network.model, cache, QuantSpec(method=Method.RTN, bits=8))
    layers = {name for name, _ in build(network.architecture).named_modules() if f"{name}.weight" in done.quantized}
    assert len(layers) == len(done.layers) == 62
    error = (done.logits - done.reference_logits).square().sum() / done.reference_logits.square().sum()
    assert error < 0.05
