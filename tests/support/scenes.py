"""A small YOLOv5 trained for a few seconds on made scenes: red, green and blue boxes on noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from edged.calibration.images import decode_bytes, normalize
from edged.calibration.letterbox import Letterbox
from edged.models.yolov5.decode import decode
from edged.models.yolov5.network import YoloV5
from edged.models.yolov5.plan import Plan
from edged.spec import Fit, InputSpec
from tests.support.pictures import encode
from tests.support.yolov5_samples import tiny_model, tiny_plan

NAMES = ("red", "green", "blue")
WIDTH, HEIGHT, SIDE = 96, 72, 64  # of a scene, and of the network's input
INPUT = InputSpec(SIDE, SIDE, (0.0,) * 3, (1.0,) * 3, Fit.LETTERBOX)


def plan() -> Plan:
    """Return a plan with two levels of strides 4 and 8."""
    return tiny_plan(NAMES)


def scene(seed: int) -> tuple[Image.Image, Tensor, Tensor]:
    """Return an image, its boxes x1, y1, x2, y2 in pixels float32 [n, 4], and their classes int64 [n]."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes, classes = [], []
    for column in range(3):  # at most one box in each third, so that none hides another
        if random.random() < 0.7 or column == seed % 3:
            wide, high = random.integers(12, 28, 2)
            x = column * 32 + int(random.integers(2, 31 - wide))
            y = int(random.integers(0, HEIGHT - high))
            kind = int(random.integers(0, 3))
            pixels[y : y + high, x : x + wide, kind] = 230
            boxes.append((x, y, x + wide, y + high))
            classes.append(kind)
    return Image.fromarray(pixels), torch.tensor(boxes, dtype=torch.float32), torch.tensor(classes)


def write_scenes(folder: Path, seeds: range, labels: bool = True) -> Path:
    """Write PNGs to images/ and YOLO label files to labels/."""
    for part in ("images", "labels") if labels else ("images",):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        image, boxes, classes = scene(seed)
        image.save(folder / "images" / f"{seed:05}.png")
        if labels:
            lines = [
                f"{kind} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}"
                for (x1, y1, x2, y2), kind in zip(boxes.tolist(), classes.tolist(), strict=True)
            ]
            (folder / "labels" / f"{seed:05}.txt").write_text("\n".join(lines))
    return folder


def train(seed: int, steps: int = 220) -> YoloV5:
    """Train from random weights on scenes that no test folder has; reaches an mAP50 of about 80 %."""
    model = tiny_model(plan(), seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    images, targets = _training_set(range(10_000, 10_300))
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randperm(len(images), generator=generator)[:16]
        optimizer.zero_grad()
        _loss(model(images[batch]), targets[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def _training_set(seeds: range) -> tuple[Tensor, Tensor]:
    """Return network inputs, and for each prediction its box (x, y, width, height), objectness and class."""
    letterbox = Letterbox(WIDTH, HEIGHT, SIDE)
    made = [scene(seed) for seed in seeds]
    pixels = np.stack([decode_bytes(encode(image, "PNG"), INPUT) for image, _, _ in made])
    targets = torch.stack([_targets(letterbox.to_square(boxes.numpy()), kinds) for _, boxes, kinds in made])
    return torch.from_numpy(normalize(pixels, INPUT)), targets


def _targets(boxes: npt.NDArray[Any], kinds: Tensor) -> Tensor:
    """Assign each box to the prediction of its cell with the most similar anchor; all others are background."""
    counts = [
        (SIDE // stride) ** 2 * len(level) for stride, level in zip(plan().strides(), plan().anchors, strict=True)
    ]
    targets = torch.zeros(sum(counts), 6)
    for (x1, y1, x2, y2), kind in zip(boxes.tolist(), kinds.tolist(), strict=True):
        x, y, wide, high = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        candidates = [
            (
                max(abs(math.log(wide / anchor[0])), abs(math.log(high / anchor[1]))),
                sum(counts[:number])
                + (int(y / stride) * (SIDE // stride) + int(x / stride)) * len(level)
                + level.index(anchor),
            )
            for number, (stride, level) in enumerate(zip(plan().strides(), plan().anchors, strict=True))
            for anchor in level
        ]
        targets[min(candidates)[1]] = torch.tensor([x, y, wide, high, 1, kind])
    return targets


def _loss(raw: Tensor, targets: Tensor) -> Tensor:
    seen = targets[..., 4] == 1
    placing = nn.functional.smooth_l1_loss(_boxes(raw)[seen], targets[seen][:, :4])
    finding = nn.functional.binary_cross_entropy_with_logits(raw[..., 4], targets[..., 4], reduction="sum") / seen.sum()
    naming = nn.functional.cross_entropy(raw[seen][:, 5:], targets[seen][:, 5].long())
    return placing + finding + naming


def _boxes(raw: Tensor) -> Tensor:
    """Return x, y, width and height of each prediction, as `edged.models.yolov5.decode` does, with gradients."""
    zero = np.zeros((raw.shape[1], raw.shape[2]), np.float32)  # sigmoid 1/2: the middle of the cell, the anchor's size
    start = torch.from_numpy(decode(zero, plan(), SIDE, SIDE))
    strides = torch.cat(
        [
            torch.full(((SIDE // stride) ** 2 * len(level), 1), float(stride))
            for stride, level in zip(plan().strides(), plan().anchors, strict=True)
        ]
    )
    s = raw[..., :4].sigmoid()
    centre = (s[..., :2] * 2 - 1) * strides + start[:, :2]
    return torch.cat((centre, (s[..., 2:] * 2).square() * start[:, 2:4]), -1)
