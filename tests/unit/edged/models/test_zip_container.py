import mmap
import os
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from edged.errors import UnsafeCheckpointError
from edged.models.allowlist import STUBBED, Stub, stubs
from edged.models.zip_container import read_contents

NAMES = ("models.yolo.Model", "models.common.Conv")


def tree_of(path: Path, extra_names: tuple[str, ...] = ()) -> object:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_contents(data, str(path), extra_names).tree


def test_extra_names_become_stubs_that_keep_their_state(tmp_path):
    path = tmp_path / "y.pt"
    state = b"}X\x05\x00\x00\x00inner" + b"cmodels.common\nConv\n)\x81}X\x01\x00\x00\x00kK\x03sb" + b"s"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("y/version", "3\n")
        archive.writestr("y/data.pkl", b"\x80\x02cmodels.yolo\nModel\n)\x81" + state + b"b.")
    model = tree_of(path, NAMES)
    assert isinstance(model, Stub)
    assert (model.name, model.state["inner"].name, model.state["inner"].state) == (*NAMES, {"k": 3})
    with pytest.raises(UnsafeCheckpointError, match=r"models\.common\.Conv"):
        tree_of(path, NAMES[:1])
    assert not set(NAMES) & {entry[1] for entry in torch.serialization.get_safe_globals() if isinstance(entry, tuple)}


def test_a_stub_takes_no_attributes_from_a_file():
    for stub, name in stubs(NAMES):
        made = stub(1, "x")
        assert stub.name == name
        if name == "collections.defaultdict":
            assert made == {}
            continue
        made.__setstate__({"dtype": torch.float32})
        with pytest.raises(AttributeError):
            made.dtype  # noqa: B018  # the access is the test
    assert {name for _, name in stubs(NAMES)} == {*STUBBED, *NAMES}


def test_defaultdict_becomes_a_dict(tmp_path):
    torch.save({"d": defaultdict(list, {"a": 1})}, tmp_path / "m.pt")
    tree = tree_of(tmp_path / "m.pt")
    assert tree == {"d": {"a": 1}}
    assert type(tree["d"]) is dict


@pytest.mark.slow
@pytest.mark.skipif("EDGED_DATA" not in os.environ, reason="EDGED_DATA names no folder")
def test_genuine_yolov5_loads_as_stubs_with_the_names_of_its_classes():
    layers = ["conv.Conv2d", "batchnorm.BatchNorm2d", "activation.SiLU", "pooling.MaxPool2d", "upsampling.Upsample"]
    names = [f"torch.nn.modules.{name}" for name in (*layers, "container.Sequential", "container.ModuleList")]
    names += [f"models.common.{name}" for name in ("Conv", "C3", "Bottleneck", "SPPF", "Concat")]
    tree = tree_of(
        Path(os.environ["EDGED_DATA"]) / "weights" / "yolov5n.pt", (*names, "models.yolo.Model", "models.yolo.Detect")
    )
    model = tree["model"]
    assert model.name == "models.yolo.Model"
    assert model.state["yaml"]["nc"] == 80
    first = model.state["_modules"]["model"].state["_modules"]["0"].state["_modules"]["conv"]
    assert first.name == "torch.nn.modules.conv.Conv2d"
    assert first.state["_parameters"]["weight"].shape == (16, 3, 6, 6)
