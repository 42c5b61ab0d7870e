"""Small artifacts for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from edged.artifacts.manifest import Manifest
from edged.models.registry import Architecture
from edged.quant.grid import QuantizedWeight
from edged.quant.power_grid import MOST_SIXTEENTHS, UNIFORM, PowerWeight
from edged.spec import InputSpec, QuantSpec

ARCHITECTURE = Architecture("cifar_resnet20", 10, "cifar", 3, "pad")
FILES = ("weights.safetensors", "manifest.json", "report.json")


def manifest(**changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "digits",
        "architecture": {"name": "resnet18", "num_classes": 10},
        "input": InputSpec(32, 32).to_dict(),
        "quantization": QuantSpec().to_dict(),
        "source": {"sha256": "ab" * 32, "bytes": 1000, "name": "a.pth", "format": "torch-zip"},
        "calibration": {"digest": "cd" * 32, "images": 90, "held_out": 10, "skipped": 0, "folder_labels": True},
        "classes": ("zero", "one"),
        "versions": {"edged": "0.1.0", "torch": "2.13.0", "python": "3.11.0"},
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:00:10+00:00",
        "weights": {"sha256": "ef" * 32, "bytes": 100},
    }
    return Manifest(**(values | changes))


def network_manifest() -> Manifest:
    """Return a manifest of ARCHITECTURE, made from a checkpoint of 1,000,000 bytes."""
    source = {"sha256": "ab" * 32, "bytes": 1_000_000, "name": "a.th", "format": "torch-zip"}
    return manifest(architecture=ARCHITECTURE.to_dict(), source=source)


def quantized(shape: tuple[int, ...], bits: int, seed: int = 0) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    rows = shape[0]
    columns = torch.Size(shape).numel() // rows

    def draw(*size: int) -> Tensor:
        return torch.randint(0, 2**bits, size, dtype=torch.uint8, generator=generator)

    scale = torch.rand(rows, generator=generator) + 0.01
    return QuantizedWeight(draw(rows, columns), scale, draw(rows), bits, shape)


def power_weight(shape: tuple[int, ...], bits: int, seed: int = 0) -> PowerWeight:
    """Return a weight with random codes of power levels."""
    generator = torch.Generator().manual_seed(seed)
    weight = quantized(shape, bits, seed)
    exponent = torch.randint(UNIFORM, MOST_SIXTEENTHS + 1, (shape[0],), dtype=torch.uint8, generator=generator)
    return PowerWeight(**vars(weight), exponent=exponent)


def stage(folder: Path, mark: str) -> Path:
    """Write a folder that the store takes for an artifact: three files with the same mark."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_text(mark)
    (folder / "report.json").write_text(json.dumps({"mark": mark}))
    (folder / "manifest.json").write_text(json.dumps({"mark": mark}))
    return folder
