from __future__ import annotations

from pathlib import Path

import torch

from edged.models.checkpoint import load_checkpoint
from edged.models.layers import own_memory
from edged.models.registry import load_model, recognize
from edged.models.resnet import CifarResNet


def test_a_model_with_memory_of_its_own_lets_go_of_the_file(tmp_path: Path):
    path = tmp_path / "resnet20.pth"
    torch.manual_seed(0)
    original = CifarResNet(3).state_dict()
    torch.save(original, path)
    checkpoint = load_checkpoint(path)
    model = load_model(checkpoint.state, recognize(checkpoint.state))
    assert is_mapped(path)
    assert own_memory(model) is model
    del checkpoint
    assert not is_mapped(path)
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert model.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def is_mapped(path: Path) -> bool:
    return path.name in Path("/proc/self/maps").read_text()
