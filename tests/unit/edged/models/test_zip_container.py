import mmap
import os
from pathlib import Path

import pytest
import torch

from edged.errors import CheckpointError
from edged.models.inert_pickle import Inert
from edged.models.zip_container import Contents, read_contents


def contents_of(path: Path) -> Contents:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_contents(data, str(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_stay_in_the_file_until_they_are_asked_for(tmp_path, zipped):
    base = torch.arange(6.0)
    saved = {"a": base[1:], "b": base.view(2, 3).t(), "c": torch.tensor(7)}
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    contents = contents_of(tmp_path / "m.pt")
    assert contents.format == ("torch-zip" if zipped else "torch-legacy")
    tensors = {name: contents.tensor(stored) for name, stored in contents.tree.items()}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.items())
    assert tensors["a"].untyped_storage().data_ptr() == tensors["b"].untyped_storage().data_ptr()


def test_values_of_a_type_that_edged_does_not_read_are_named(tmp_path):
    torch.save({"z": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "m.pt")
    contents = contents_of(tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"torch\.ComplexFloatStorage"):
        contents.tensor(contents.tree["z"])


@pytest.mark.slow
@pytest.mark.skipif("EDGED_DATA" not in os.environ, reason="EDGED_DATA names no folder")
def test_the_genuine_yolov5_is_read_as_inert_data_with_the_names_of_its_classes():
    contents = contents_of(Path(os.environ["EDGED_DATA"]) / "weights" / "yolov5n.pt")
    model = contents.tree["model"]
    assert isinstance(model, Inert)
    assert model.name == "models.yolo.Model"
    assert model.state["yaml"]["nc"] == 80
    first = model.state["_modules"]["model"].state["_modules"]["0"].state["_modules"]["conv"]
    assert first.name == "torch.nn.modules.conv.Conv2d"
    assert first.state["_parameters"]["weight"].shape == (16, 3, 6, 6)
