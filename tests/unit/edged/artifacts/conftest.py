from pathlib import Path

import pytest
import torch
from torch import Tensor

from edged.artifacts.writer import write_artifact
from edged.models.layers import quantizable_layers
from edged.models.registry import build
from edged.quant.grid import QuantizedWeight, minmax_grid
from edged.spec import Scheme
from tests.support.artifact_samples import ARCHITECTURE, network_manifest

Parts = tuple[dict[str, QuantizedWeight], dict[str, Tensor]]


@pytest.fixture(scope="module")
def parts() -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]]:
    """Return a random network whose weights are rounded to nearest."""
    torch.manual_seed(0)
    model = build(ARCHITECTURE)
    state = {
        # Batch counters (num_batches_tracked) are the only integers; a new network has counted nothing.
        name: torch.randn(value.shape) if value.is_floating_point() else torch.zeros_like(value)
        for name, value in model.state_dict().items()
    }
    quantized = {}
    for name in quantizable_layers(model):
        weight = state.pop(f"{name}.weight")
        rows = weight.flatten(1)
        grid = minmax_grid(rows, 4, Scheme.ASYMMETRIC)
        quantized[f"{name}.weight"] = grid.quantized(grid.encode(rows), tuple(weight.shape))
    return quantized, state


@pytest.fixture
def written(tmp_path: Path, parts: tuple[dict[str, QuantizedWeight], dict[str, Tensor]]) -> Path:
    path = tmp_path / "artifact"
    write_artifact(
        path, quantized=parts[0], rest=parts[1], manifest=network_manifest(), report={"layers": [], "totals": {"x": 1}}
    )
    return path
