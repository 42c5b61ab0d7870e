"""Real checkpoints, from the folder that EDGED_DATA names."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edged.calibration.dataset import build_cache
from edged.calibration.yolo_labels import read_labels
from edged.errors import UnsafeCheckpointError
from edged.evaluation.detection import average_precision, detect_all
from edged.models.checkpoint import read_checkpoint
from edged.models.registry import Architecture, load_model, recognize
from edged.models.yolov5.standard import standard

DATA = Path(os.environ.get("EDGED_DATA", "/nonexistent"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DATA.is_dir(), reason="EDGED_DATA names no folder")]


@pytest.mark.parametrize(
    ("file", "form", "architecture"),
    [
        ("resnet18-imagenette.pth", "torch-zip", Architecture("resnet18", 10)),
        ("resnet20-12fca82f.th", "torch-legacy", Architecture("cifar_resnet20", 10, "cifar", 3, "pad")),
        ("resnet32-d509ac18.th", "torch-legacy", Architecture("cifar_resnet32", 10, "cifar", 3, "pad")),
        ("resnet56-4bfd9763.th", "torch-legacy", Architecture("cifar_resnet56", 10, "cifar", 3, "pad")),
    ],
)
def test_genuine_resnets_load_as_torch_loads_them(file, form, architecture):
    checkpoint = read_checkpoint(DATA / "weights" / file)
    assert checkpoint.format == form
    assert recognize(checkpoint.state) == architecture
    assert form == "torch-zip" or checkpoint.sha256.startswith(file.split("-")[1].removesuffix(".th"))
    saved = torch.load(DATA / "weights" / file, map_location="cpu", weights_only=True)
    saved = {name.removeprefix("module."): tensor for name, tensor in saved.get("state_dict", saved).items()}
    saved = {name: tensor for name, tensor in saved.items() if not name.endswith("num_batches_tracked")}
    assert saved.keys() == checkpoint.state.keys()
    assert all(torch.equal(tensor, checkpoint.state[name]) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("yolov5n.pt", 80),
        ("fixtures/custom_yolov5n_v6_nc1_face.pt", ("face",)),
        ("fixtures/custom_yolov5n_v7_nc3_animals.pt", 3),
    ],
)
def test_genuine_yolov5_loads(file, names):
    checkpoint = read_checkpoint(DATA / "weights" / file)
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    assert architecture.name == "yolov5n"
    assert names in (architecture.num_classes, architecture.plan.names)
    assert architecture.plan.anchors == standard("n", architecture.plan.names).anchors
    model = load_model(checkpoint.state, architecture)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 3 * (96 + 24 + 6), 5 + architecture.num_classes)


def test_a_variant_with_other_blocks_is_refused_by_name():
    with pytest.raises(UnsafeCheckpointError, match=r"block that edged does not know.*'models.common.C3x'"):
        read_checkpoint(DATA / "weights" / "fixtures" / "yolov5n_variant_c3x_dwconvtranspose_nc80.pt")


def test_yolov5n_reaches_its_precision(tmp_path):
    checkpoint = read_checkpoint(DATA / "weights" / "yolov5n.pt")
    architecture = recognize(checkpoint.state, None, checkpoint.plan)
    model = load_model(checkpoint.state, architecture).to(memory_format=torch.channels_last)
    cache = build_cache(DATA / "coco" / "val", tmp_path, architecture.default_input)
    labels = read_labels(DATA / "coco" / "val", cache.files)
    found = detect_all(model, architecture.plan, cache, torch.arange(len(cache)))
    score = average_precision(found, labels.boxes, cache.sizes)
    assert (score.images, score.boxes) == (128, 898)
    assert score.map50 == pytest.approx(53.0, abs=1.0)
    assert score.map50_95 == pytest.approx(34.0, abs=0.2)


def test_resnet20_reaches_its_accuracy():
    state = read_checkpoint(DATA / "weights" / "resnet20-12fca82f.th").state
    model = load_model(state, recognize(state))
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    right = total = 0
    for label, folder in enumerate(sorted((DATA / "cifar10" / "test").iterdir())):
        images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]
        batch = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.inference_mode():
            predicted = torch.cat([model(part).argmax(1) for part in batch.split(100)])
        right, total = right + int((predicted == label).sum()), total + len(images)
    assert total == 10_000
    assert 100 * right / total == pytest.approx(81.03, abs=0.05)
