"""A small artifact to damage: a ResNet-20 for images of 8 pixels, with random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from edged.calibration.dataset import MIN_IMAGES
from edged.models.loading import load_checkpoint
from edged.models.resnet import CifarResNet
from edged.pipeline.quantize import quantize
from edged.spec import Method, QuantSpec

INTEGERS = QuantSpec(method=Method.RTN, bits=4, activation_bits=8)
_SIDE = 8


def write_small_artifact(directory: Path, spec: QuantSpec = INTEGERS) -> None:
    """Quantize a network with random weights into a folder that must not exist.

    Args:
        directory: The folder.
        spec: How to quantize.
    """
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="edged-") as name:
        folder = Path(name)
        save_file(CifarResNet(3).state_dict(), folder / "m.safetensors")
        (folder / "images").mkdir()
        for number in range(MIN_IMAGES):
            pixels = draw.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        network = load_checkpoint(folder / "m.safetensors", input_settings={"size": _SIDE, "resize": _SIDE})
        quantize(network, folder / "images", directory, spec, runtime="onnxruntime")
