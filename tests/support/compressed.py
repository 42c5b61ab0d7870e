"""A network with sensible statistics, and the digest of its codes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import compress
from edged.models.resnet import CifarResNet
from edged.spec import InputSpec, QuantSpec
from tests.support.pictures import write_folder


def small_cache(folder: Path) -> ImageCache:
    """Return a cache of 96 random images of 16 pixels in four classes, which it writes into the folder."""
    write_folder(folder / "images", classes=4, images=24)
    return build_cache(folder / "images", folder / "cache", InputSpec(16, 16))


def network(cache: ImageCache, blocks: int = 3) -> nn.Module:
    """Return random weights with the BatchNorm statistics that training on these images would leave."""
    torch.manual_seed(0)
    model = CifarResNet(blocks)
    with torch.no_grad():
        for _ in range(30):
            model(cache.batch(torch.arange(min(64, len(cache)))))
    return model.eval().requires_grad_(False)


def digest_of_codes(model: nn.Module, cache: ImageCache) -> str:
    done = compress(model, cache, QuantSpec(bits=3, seed=5, beam=2, descent_passes=1))
    return hashlib.sha256(b"".join(weight.codes.numpy().tobytes() for weight in done.quantized.values())).hexdigest()
